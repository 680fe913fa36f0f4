package format

import (
	"bytes"
	"strings"

	"plinth.dev/plinth/backingimage"
)

// signature is how a format that we refuse can be recognised.
type signature struct {
	offset int
	magic  string
	name   string
	remedy string
}

const (
	decompress = "decompress it and publish the raw or qcow2 file inside"
	unpack     = "unpack it and publish the raw or qcow2 file inside"
	convert    = "convert it with \"qemu-img convert -O qcow2\" and publish the result"
)

// signatures of formats that are no raw disk, however willing we were to store them. A VHD of fixed size has its mark
// at its end, where a stream's head does not show it: it is its raw content plus 512 bytes.
var signatures = []signature{
	{0, "\x1f\x8b", "gzip", decompress},
	{0, "\xfd7zXZ\x00", "xz", decompress},
	{0, "\x28\xb5\x2f\xfd", "zstd", decompress},
	{0, "BZh", "bzip2", decompress},
	{0, "\x04\x22\x4d\x18", "lz4", decompress},
	{0, "7z\xbc\xaf\x27\x1c", "7-zip", unpack},
	{0, "PK\x03\x04", "zip", unpack},
	{257, "ustar", "tar (an OVA is one, too)", unpack},
	{0, "KDMV", "VMDK", convert},
	{0, "COWD", "VMDK", convert},
	{0, "# Disk DescriptorFile", "VMDK", convert},
	{64, "\x7f\x10\xda\xbe", "VDI", convert},
	{0, "vhdxfile", "VHDX", convert},
	{0, "conectix", "VHD", convert},
	{0, "QED\x00", "QED", convert},
	{0, "WithoutFreeSpace", "Parallels", convert},
	{0, "WithouFreSpacExt", "Parallels", convert},
	{0, qcowMagic + "\x00\x00\x00\x01", "qcow version 1", convert},
	{0, "LUKS\xba\xbe", "LUKS", "decrypt it and publish the raw or qcow2 content; encrypted images are not supported"},
}

// refuseKnown refuses what is recognised as something else than raw or qcow2.
func refuseKnown(head []byte) error {
	if isWebPage(head) {
		return backingimage.Errorf(backingimage.Invalid, "the URL serves a web page, not an image; use the link of the file itself")
	}
	for _, s := range signatures {
		if len(head) >= s.offset && bytes.HasPrefix(head[s.offset:], []byte(s.magic)) {
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
