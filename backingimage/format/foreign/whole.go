package foreign

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/format"
	"plinth.dev/plinth/backingimage/parallel"
)

// QEMU reads zeros behind the end of a file. Half of a VMDK or VDI would therefore convert without a word, to half of
// a disk. It does refuse a VHD that was cut, a compressed VMDK, and a VHDX whose blocks begin behind its end.

// vhdxUnit is what every part of a VHDX, and so its file, is a multiple of, in bytes.
const vhdxUnit = 1 << 20

// checkWhole refuses, as Corrupt, an image that is longer than its file.
func (i Image) checkWhole(ctx context.Context, fileBytes, virtualBytes int64) error {
	switch {
	case i.Format == format.VHDX && fileBytes%vhdxUnit != 0:
		return i.cut(fileBytes)
	case i.Format == format.VHDX || i.Format == format.VHD:
		return nil
	}
	out, in := io.Pipe()
	group, ctx := parallel.WithContext(ctx)
	group.Go(func() error {
		defer in.Close()
		s := i.sandbox(fileBytes, virtualBytes)
		s.LargestBytes, s.Output = 0, in
		if _, err := s.Run(ctx, program, "map", "--output=json", "-f", drivers[i.Format], sourcePath); err != nil {
			return i.explain("read", err)
		}
		return nil
	})
	group.Go(func() error {
		defer out.Close()
		return i.checkExtents(out, fileBytes)
	})
	return group.Wait()
}

// extent is an entry of qemu-img's map. Compressed data has no offset.
type extent struct {
	Offset int64 `json:"offset"`
	Length int64 `json:"length"`
}

// checkExtents reads qemu-img's map, which may be long.
func (i Image) checkExtents(out io.Reader, fileBytes int64) error {
	slack := int64(0)
	if i.Format == format.VMDK {
		slack = grainBytes - 1
	}
	decoder := json.NewDecoder(out)
	if _, err := decoder.Token(); err != nil { // the list's bracket
		return ended(err)
	}
	for decoder.More() {
		var e extent
		if err := decoder.Decode(&e); err != nil {
			return ended(err)
		}
		if e.Offset > 0 && e.Length > fileBytes+slack-e.Offset {
			return i.cut(fileBytes)
		}
	}
	_, err := io.Copy(io.Discard, io.MultiReader(decoder.Buffered(), out))
	return err
}

// grainBytes is what a VMDK is made of. The last one may be short: what lies behind it reads as zeros.
const grainBytes = 64 << 10

// ended is nil where the list ends early because qemu-img did: its own error says why.
func ended(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return nil
	}
	return fmt.Errorf("read qemu-img's map: %w", err)
}

func (i Image) cut(fileBytes int64) error {
	return backingimage.Errorf(backingimage.Corrupt, "the %s image is truncated: it refers to data behind its end at %d bytes; publish it anew", i.Format, fileBytes)
}

// fileBytes is the size of the image's file.
func (i Image) fileBytes() (int64, error) {
	info, err := os.Stat(i.Path)
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}
