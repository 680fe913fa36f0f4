package format

import (
	"bytes"
	"fmt"
	"io"

	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/zstd"
)

// inflater decompresses clusters. It is kept between them, because making a decompressor costs more than a cluster does.
type inflater struct {
	input bytes.Reader
	flate io.ReadCloser
	zstd  *zstd.Decoder
}

// inflate fills out from compressed data. What follows the data, up to the end of its last sector, is ignored.
func (i *inflater) inflate(compression uint8, out, data []byte) error {
	i.input.Reset(data)
	if compression == compressZstd {
		return i.inflateZstd(out)
	}
	return i.inflateZlib(out)
}

func (i *inflater) inflateZlib(out []byte) error {
	if i.flate == nil {
		i.flate = flate.NewReader(&i.input)
	} else if err := i.flate.(flate.Resetter).Reset(&i.input, nil); err != nil {
		return err
	}
	_, err := io.ReadFull(i.flate, out)
	return err
}

func (i *inflater) inflateZstd(out []byte) error {
	var err error
	if i.zstd == nil {
		i.zstd, err = zstd.NewReader(&i.input, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(8<<20))
	} else {
		err = i.zstd.Reset(&i.input)
	}
	if err != nil {
		return fmt.Errorf("begin a cluster: %w", err)
	}
	_, err = io.ReadFull(i.zstd, out)
	return err
}
