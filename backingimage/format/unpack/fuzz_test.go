package unpack_test

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/format"
	"plinth.dev/plinth/backingimage/format/unpack"
)

// FuzzUnpack: no packed file makes a decoder panic or hang, an error has a Kind, and what comes out can be probed.
func FuzzUnpack(f *testing.F) {
	small := content(1, 10<<10)
	for name := range tools {
		packed := mustPack(f, name, small)
		f.Add(packed)
		f.Add(join(packed, packed, []byte("garbage")))
		f.Add(packed[:len(packed)/2])
		f.Add(mustPack(f, name, mustPack(f, name, small)))
		f.Add(mustPack(f, name, make([]byte, 1<<20)))
	}
	f.Add(join(skippable, mustPack(f, format.Zstd, small)))
	f.Fuzz(func(t *testing.T, file []byte) {
		outer, err := format.Probe(file[:min(len(file), format.HeadBytes)], int64(len(file)), format.Limits{})
		if err != nil || !outer.Packed() {
			return
		}
		unpack.Size(outer.Format, file)
		r, err := unpack.Open(outer.Format, bytes.NewReader(file))
		if err == nil {
			var head []byte
			head, err = io.ReadAll(io.LimitReader(r, 8<<20))
			if err == nil {
				_, _ = format.ProbeInside(outer.Format, head[:min(len(head), format.HeadBytes)], -1, format.Limits{}) // must not panic
			}
		}
		if err != nil && !backingimage.Terminal(err) {
			t.Errorf("%s: an error without an end: %v", outer.Format, err)
		}
	})
}

// FuzzArchive: no archive makes its reader panic, hang, or give more than it said.
func FuzzArchive(f *testing.F) {
	f.Add(mustArchive(f, file("disk/image"), file("b")))
	f.Add(mustArchive(f, file("disk/a"), file("disk/b")))
	f.Add(mustArchive(f, file("./disk/"+string(bytes.Repeat([]byte("x"), 200)))))
	f.Add(retype(mustArchive(f, file("disk/image")), 'S', 12, 512))
	f.Fuzz(func(t *testing.T, archive []byte) {
		a := unpack.NewArchive(bytes.NewReader(archive), "disk", 1<<20)
		r, size, err := a.Image()
		if err == nil {
			var n int64
			n, err = io.Copy(io.Discard, io.LimitReader(r, 8<<20))
			if err == nil && n != min(size, 8<<20) {
				t.Errorf("gave %d bytes of %d", n, size)
			}
			if err == nil && n < 8<<20 {
				err = a.End()
			}
		}
		if err != nil && (!backingimage.Terminal(err) || errors.Is(err, io.ErrUnexpectedEOF)) {
			t.Errorf("an error without a Kind: %v", err)
		}
	})
}
