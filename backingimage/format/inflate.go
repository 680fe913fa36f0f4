package format

import (
	"bytes"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
)

// inflater decompresses clusters. It is kept between them, because making a decompressor costs more than a cluster does.
type inflater struct {
	deflate deflate
	input   bytes.Reader
	zstd    *zstd.Decoder
}

// inflate fills out from compressed data. What follows the data, up to the end of its last sector, is ignored.
func (i *inflater) inflate(compression uint8, out, data []byte) error {
	if compression == compressZstd {
		return i.inflateZstd(out, data)
	}
	return i.deflate.decode(out, data)
}

func (i *inflater) inflateZstd(out, data []byte) error {
	i.input.Reset(data)
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
