package backup

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"sync"

	"github.com/klauspost/compress/zstd"
	"github.com/zeebo/blake3"

	"plinth.dev/plinth/backingimage"
)

// Kinds of objects, as their headers have them.
const (
	kindBlock    byte = 'b'
	kindPage     byte = 'p'
	kindManifest byte = 'm'
	kindList     byte = 'c' // of condemned objects
)

// An object is a header of 16 bytes, a nonce when it is sealed, the content, and where nothing else proves the content, a digest:
//
//	"PLBK"                    4 bytes
//	version                   1 byte; 1
//	kind                      1 byte
//	flags                     1 byte
//	reserved                  1 byte; 0
//	bytes of the content      32 bits, little-endian
//	bytes that are stored     32 bits, little-endian: all that follows
const (
	magic       = "PLBK"
	version     = 1
	headerBytes = 16
	nonceBytes  = 12
	tagBytes    = 16
	sumBytes    = 32

	flagZstd   = 1
	flagSealed = 2
)

// limits of the contents, by kind, in bytes.
var limits = map[byte]int64{kindBlock: BlockBytes, kindPage: maxPageBytes, kindManifest: 64 << 20, kindList: 16 << 20}

// storedLimit is the most bytes that an object of a kind has.
func storedLimit(kind byte) int64 {
	return headerBytes + nonceBytes + limits[kind] + tagBytes + sumBytes
}

// proven reports whether the name of an object proves its content.
func proven(kind byte) bool { return kind == kindBlock || kind == kindPage }

// codecs compress and expand; they are made when they are first needed and are safe for concurrent use.
var (
	encoder = sync.OnceValue(func() *zstd.Encoder {
		e, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithWindowSize(BlockBytes), zstd.WithLowerEncoderMem(true))
		if err != nil {
			panic(err) // the options are constant
		}
		return e
	})
	decoder = sync.OnceValue(func() *zstd.Decoder {
		d, err := zstd.NewReader(nil, zstd.WithDecoderMaxMemory(128<<20), zstd.WithDecoderMaxWindow(8<<20), zstd.WithDecodeAllCapLimit(true))
		if err != nil {
			panic(err)
		}
		return d
	})
)

// enclose makes an object of a content, after what is in to; name is the object's without folder and suffix.
func (k *keys) enclose(to []byte, kind byte, name string, content []byte) []byte {
	start, flags := len(to), byte(0)
	to = append(to, make([]byte, headerBytes)...)
	if k != nil {
		flags |= flagSealed
		to = append(to, make([]byte, nonceBytes)...)
		rand.Read(to[len(to)-nonceBytes:])
	}
	at := len(to)
	to = encoder().EncodeAll(content, to)
	if len(to)-at < len(content)-len(content)/16 {
		flags |= flagZstd
	} else {
		to = append(to[:at], content...)
	}
	tail := 0
	if k != nil {
		tail = tagBytes
	} else if !proven(kind) {
		tail = sumBytes
	}
	header := to[start : start+headerBytes]
	copy(header, magic)
	header[4], header[5], header[6] = version, kind, flags
	binary.LittleEndian.PutUint32(header[8:], uint32(len(content)))
	binary.LittleEndian.PutUint32(header[12:], uint32(len(to)-start-headerBytes+tail))
	switch {
	case k != nil:
		to = k.aead(kind, name).Seal(to[:at], to[at-nonceBytes:at], to[at:], header)
	case tail > 0:
		sum := blake3.Sum256(to[start:])
		to = append(to, sum[:]...)
	}
	return to
}

// header is what an object says of itself.
type header struct {
	flags          byte
	content, store int64
}

// parseHeader checks what the first bytes of an object and its size must be. Corrupt; Unsupported when a newer program wrote it.
func (k *keys) parseHeader(kind byte, first []byte, size int64) (header, error) {
	if len(first) < headerBytes || string(first[:len(magic)]) != magic {
		return header{}, corrupt("it is not an object of a backup")
	}
	if first[4] != version {
		return header{}, backingimage.Errorf(backingimage.Unsupported, "it has format version %d, and this program knows version %d: use a newer Plinth", first[4], version)
	}
	h := header{flags: first[6], content: int64(binary.LittleEndian.Uint32(first[8:])), store: int64(binary.LittleEndian.Uint32(first[12:]))}
	switch {
	case first[5] != kind:
		return header{}, corrupt("it is of kind %q, not %q", first[5], kind)
	case h.flags&^(flagZstd|flagSealed) != 0 || first[7] != 0:
		return header{}, corrupt("it has flags that there are not")
	case (h.flags&flagSealed != 0) != (k != nil):
		return header{}, corrupt("it is encrypted where the target is not, or the other way around")
	case h.content > limits[kind]:
		return header{}, corrupt("it says that its content has %d bytes, and at most %d can be", h.content, limits[kind])
	case headerBytes+h.store != size:
		return header{}, corrupt("it has %d bytes, not the %d that it says", size, headerBytes+h.store)
	}
	return h, nil
}

// disclose returns the content of an object after what is in to. Corrupt; Unsupported. Nothing is allocated beyond what a content of
// this kind may have.
func (k *keys) disclose(to []byte, kind byte, name string, object []byte) ([]byte, error) {
	h, err := k.parseHeader(kind, object, int64(len(object)))
	if err != nil {
		return nil, err
	}
	stored := object[headerBytes:]
	switch {
	case k != nil:
		if len(stored) < nonceBytes {
			return nil, corrupt("it is too short")
		}
		// In place: the object is the caller's, who needs it no more.
		stored, err = k.aead(kind, name).Open(stored[nonceBytes:nonceBytes], stored[:nonceBytes], stored[nonceBytes:], object[:headerBytes])
		if err != nil {
			return nil, corrupt("it was altered, is of another name, or was sealed with another key")
		}
	case !proven(kind):
		if len(stored) < sumBytes {
			return nil, corrupt("it is too short")
		}
		body := object[:len(object)-sumBytes]
		if sum := blake3.Sum256(body); string(sum[:]) != string(object[len(body):]) {
			return nil, corrupt("it does not agree with its own checksum")
		}
		stored = stored[:len(stored)-sumBytes]
	}
	return expand(to, h, stored)
}

// expand returns what was stored, decompressed where it is compressed, after what is in to.
func expand(to []byte, h header, stored []byte) ([]byte, error) {
	if h.flags&flagZstd == 0 {
		if int64(len(stored)) != h.content {
			return nil, corrupt("its content has %d bytes, not the %d that it says", len(stored), h.content)
		}
		return append(to, stored...), nil
	}
	start := len(to)
	if int64(cap(to)-start) < h.content {
		to = append(make([]byte, 0, int64(start)+h.content), to...)
	}
	full := to[: start : int64(start)+h.content] // no more than this is expanded
	out, err := decoder().DecodeAll(stored, full)
	if errors.Is(err, zstd.ErrDecoderSizeExceeded) || err == nil && int64(len(out)-start) != h.content {
		return nil, corrupt("it expands to another size than the %d bytes that it says", h.content)
	}
	if err != nil {
		return nil, corrupt("it cannot be expanded")
	}
	return out, nil
}

func corrupt(format string, args ...any) error {
	return backingimage.Errorf(backingimage.Corrupt, format, args...)
}
