package format

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"strings"

	"plinth.dev/plinth/backingimage"
)

// signature is how a format can be recognised.
type signature struct {
	offset int
	magic  string
	name   string
	remedy string
}

const (
	unpackIt = "unpack it and publish the raw or qcow2 file inside"
	convert  = "convert it with \"qemu-img convert -O qcow2\" and publish the result"
)

// known are the signatures of formats that we accept, raw and qcow2 apart. A VHD of fixed size is not among them: see
// FixedVHD.
var known = []signature{
	{0, "\x1f\x8b", GZip, ""},
	{0, "\xfd7zXZ\x00", XZ, ""},
	{0, "\x28\xb5\x2f\xfd", Zstd, ""},
	{0, "BZh", BZip2, ""},
	{0, "KDMV", VMDK, ""},
	{0, "COWD", VMDK, ""},
	{64, "\x7f\x10\xda\xbe", VDI, ""},
	{0, "vhdxfile", VHDX, ""},
	{0, "conectix", VHD, ""},
}

// refused are the signatures of formats that are no raw disk, however willing we were to store them.
var refused = []signature{
	{0, "\x04\x22\x4d\x18", "lz4", "compress it with gzip, xz, zstd or bzip2 instead"},
	{0, "7z\xbc\xaf\x27\x1c", "7-zip", unpackIt},
	{0, "PK\x03\x04", "zip", unpackIt},
	{257, "ustar", "tar (an OVA is one, too)", unpackIt},
	{0, "# Disk DescriptorFile", "a VMDK descriptor, whose data is in other files", convert},
	{0, "QED\x00", "QED", convert},
	{0, "WithoutFreeSpace", "Parallels", convert},
	{0, "WithouFreSpacExt", "Parallels", convert},
	{0, qcowMagic + "\x00\x00\x00\x01", "qcow version 1", convert},
	{0, "LUKS\xba\xbe", "LUKS", "decrypt it and publish the raw or qcow2 content; encrypted images are not supported"},
}

func (s signature) fits(head []byte) bool {
	return len(head) >= s.offset && bytes.HasPrefix(head[s.offset:], []byte(s.magic))
}

// recognise returns the name of an accepted format, "" for raw and for qcow2.
func recognise(head []byte) string {
	if isSkippable(head) {
		return Zstd
	}
	for _, s := range known {
		if s.fits(head) {
			return s.name
		}
	}
	return ""
}

// isSkippable reports whether the first bytes are a frame that zstd skips; pzstd begins its files with one.
func isSkippable(head []byte) bool {
	return len(head) >= 4 && head[0]&0xf0 == 0x50 && bytes.HasPrefix(head[1:], []byte("\x2a\x4d\x18"))
}

func isTar(head []byte) bool { return signature{257, "ustar", Tar, ""}.fits(head) }

// refuseKnown refuses what is recognised as something that cannot become an image.
func refuseKnown(head []byte) error {
	if isWebPage(head) {
		return backingimage.Errorf(backingimage.Invalid, "the URL serves a web page, not an image; use the link of the file itself")
	}
	if isJSON(head) {
		return backingimage.Errorf(backingimage.Invalid, "the URL serves a JSON document, not an image; use the link of the file itself")
	}
	for _, s := range refused {
		if s.fits(head) {
			return backingimage.Errorf(backingimage.Unsupported, "the source's format is %s, which is not supported; %s", s.name, s.remedy)
		}
	}
	return nil
}

// pageStarts are how web pages, and XML documents such as an object store's error, begin. In lower case.
var pageStarts = []string{"<!doctype", "<html", "<head", "<body", "<script", "<title", "<?xml", "<!--"}

func isWebPage(head []byte) bool {
	text := bytes.TrimPrefix(head, []byte("\xef\xbb\xbf"))
	text = bytes.TrimLeft(text, " \t\r\n")
	start := strings.ToLower(string(text[:min(len(text), 16)]))
	for _, s := range pageStarts {
		if strings.HasPrefix(start, s) {
			return true
		}
	}
	return false
}

// isJSON reports whether the first bytes are those of a JSON object or list, such as an API's error: text that begins as
// one and is one as far as it goes.
func isJSON(head []byte) bool {
	text := bytes.TrimLeft(bytes.TrimPrefix(head, []byte("\xef\xbb\xbf")), " \t\r\n")
	if len(text) < 2 || text[0] != '{' && text[0] != '[' || bytes.IndexByte(text, 0) >= 0 {
		return false
	}
	decoder := json.NewDecoder(bytes.NewReader(text))
	for {
		if _, err := decoder.Token(); err != nil {
			return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
		}
	}
}
