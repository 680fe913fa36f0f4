package format

import (
	"encoding/binary"
	"errors"
)

// deflate decompresses the DEFLATE data (RFC 1951) of one cluster. Input and output lie in memory whole, which allows
// what a decoder over streams cannot do: matches are copied within the output, without a window beside it, and
// the bits of a whole symbol are taken from one unaligned load. Conversion of a compressed image spends its time here.
//
// It is kept between clusters for the sake of its tables, and used by one goroutine.
type deflate struct {
	input   []byte
	next    int    // first byte of input that is not in bits
	bits    uint64 // taken from input, lowest first
	count   uint   // how many of bits are valid
	phantom uint   // zero bits that were put behind the end of the input

	literals  codeTable
	distances codeTable
	fixed     bool // the tables are those of a block with fixed codes
	lengths   [maxLiterals + maxDistances]uint8
}

var (
	errInvalid = errors.New("the data is not valid")
	errShort   = errors.New("the data ends too early")
	errEndless = errors.New("the data is not valid: a block cannot end") // zlib refuses it too
)

// decode fills out. As qemu does, it does not look at what comes after the last byte that fits.
func (d *deflate) decode(out, input []byte) error {
	d.input, d.next, d.bits, d.count, d.phantom = input, 0, 0, 0, 0
	at, last := 0, false
	for at < len(out) && !last {
		d.refill()
		last = d.take(1) == 1
		var err error
		switch d.take(2) {
		case 0:
			at, err = d.stored(out, at)
		case 1:
			d.fixedTables()
			at, err = d.block(out, at)
		case 2:
			if err = d.dynamicTables(); err == nil {
				at, err = d.block(out, at)
			}
		default:
			err = errInvalid
		}
		if err != nil {
			return err
		}
	}
	if at < len(out) || d.count < d.phantom {
		return errShort
	}
	return nil
}

// refill makes at least 56 bits valid.
func (d *deflate) refill() {
	if d.next+8 <= len(d.input) {
		d.bits |= binary.LittleEndian.Uint64(d.input[d.next:]) << d.count
		d.next += int((63 - d.count) >> 3)
		d.count |= 56
		return
	}
	for d.count < 56 {
		if d.next < len(d.input) {
			d.bits |= uint64(d.input[d.next]) << d.count
			d.next++
		} else {
			d.phantom += 8
		}
		d.count += 8
	}
}

// take returns the next n bits, which must be valid.
func (d *deflate) take(n uint) uint {
	v := uint(d.bits) & (1<<n - 1)
	d.bits >>= n
	d.count -= n
	return v
}

// stored copies a block that is not compressed.
func (d *deflate) stored(out []byte, at int) (int, error) {
	d.take(d.count % 8)
	d.refill()
	length, check := d.take(16), d.take(16)
	if length != ^check&0xffff {
		return at, errInvalid
	}
	if d.count < d.phantom {
		return at, errShort
	}
	d.next -= int((d.count - d.phantom) / 8) // give back what is whole
	d.bits, d.count, d.phantom = 0, 0, 0
	n := copy(out[at:], d.input[d.next:min(d.next+int(length), len(d.input))])
	d.next += n
	if n < int(length) && at+n < len(out) {
		return at, errShort
	}
	return at + n, nil
}

// block decodes a block of symbols up to its end, or until out is full.
func (d *deflate) block(out []byte, at int) (int, error) {
	for at < len(out) {
		at = d.middle(out, at)
		d.refill()
		e := d.literals.entries[d.bits&(1<<literalBits-1)]
		if e&isPointer != 0 {
			e = d.literals.entries[uint64(e>>payload)+d.bits>>literalBits&(1<<literalRest-1)]
		}
		d.take(uint(e & codeBits))
		switch {
		case e&isLiteral != 0:
			out[at] = byte(e >> payload)
			at++
			continue
		case e&isSpecial != 0:
			if e>>payload == endOfBlock && d.count >= d.phantom {
				return at, nil
			}
			return at, errInvalid
		}
		length := int(e>>payload) + int(d.take(uint(e>>extraShift&extraBits)))
		distance, err := d.distance()
		if err != nil || distance > at {
			return at, errInvalid
		}
		at = repeat(out, at, distance, length)
		if d.count < d.phantom {
			return at, errShort
		}
	}
	return at, nil
}

// Room that middle needs: two loads of input, and the longest match with what repeat may write too many.
const (
	inputRoom  = 16
	outputRoom = 258 + 8
)

// middle is block's loop for as long as neither end is near, so that nothing has to be checked against them, and with
// all that it changes in registers. It stops before whatever is not a literal, or a match that is in order; block
// then looks at that, and calls again. Up to two literals are taken before bits are filled up: they have 11 bits at the
// most here, and a length needs no more than 20.
func (d *deflate) middle(out []byte, at int) int {
	input, bits, count, next := d.input, d.bits, d.count, d.next
	literals, distances := d.literals.entries, d.distances.entries
	for next+inputRoom <= len(input) && at+outputRoom <= len(out)-1 {
		bits |= binary.LittleEndian.Uint64(input[next:]) << (count & 63)
		next += int((63 - count) >> 3)
		count |= 56
		e := literals[bits&(1<<literalBits-1)]
		if e&isLiteral != 0 {
			out[at] = byte(e >> payload)
			at++
			bits >>= e & codeBits
			count -= uint(e & codeBits)
			e = literals[bits&(1<<literalBits-1)]
			if e&isLiteral != 0 {
				out[at] = byte(e >> payload)
				at++
				bits >>= e & codeBits
				count -= uint(e & codeBits)
				continue
			}
		}
		if e&(isPointer|isSpecial) != 0 {
			break
		}
		before, beforeCount, beforeNext := bits, count, next
		bits >>= e & codeBits
		count -= uint(e & codeBits)
		extra := e >> extraShift & extraBits
		length := int(e>>payload) + int(bits&(1<<extra-1))
		bits >>= extra
		count -= uint(extra)
		bits |= binary.LittleEndian.Uint64(input[next:]) << (count & 63)
		next += int((63 - count) >> 3)
		count |= 56
		e = distances[bits&(1<<distanceBits-1)]
		if e&isPointer != 0 {
			e = distances[uint64(e>>payload)+bits>>distanceBits&(1<<distanceRest-1)]
		}
		bits >>= e & codeBits
		count -= uint(e & codeBits)
		extra = e >> extraShift & extraBits
		distance := int(e>>payload) + int(bits&(1<<extra-1))
		bits >>= extra
		count -= uint(extra)
		if e&isSpecial != 0 || distance > at {
			bits, count, next = before, beforeCount, beforeNext
			break
		}
		at = repeat(out, at, distance, length)
	}
	d.bits, d.count, d.next = bits, count, next
	return at
}

func (d *deflate) distance() (int, error) {
	e := d.distances.entries[d.bits&(1<<distanceBits-1)]
	if e&isPointer != 0 {
		e = d.distances.entries[uint64(e>>payload)+d.bits>>distanceBits&(1<<distanceRest-1)]
	}
	if e&isSpecial != 0 {
		return 0, errInvalid
	}
	d.take(uint(e & codeBits))
	return int(e>>payload) + int(d.take(uint(e>>extraShift&extraBits))), nil
}

// repeat copies length bytes from distance bytes back, which may overlap with what it writes, and returns the new end.
// What does not fit is dropped.
func repeat(out []byte, at, distance, length int) int {
	end, from := min(at+length, len(out)), at-distance
	switch {
	case distance >= 8 && end+8 <= len(out): // may write up to 7 bytes too many, which come later anyway
		for at < end {
			binary.LittleEndian.PutUint64(out[at:], binary.LittleEndian.Uint64(out[from:]))
			at, from = at+8, from+8
		}
	case distance >= end-at:
		copy(out[at:end], out[from:])
	default:
		for ; at < end; at, from = at+1, from+1 {
			out[at] = out[from]
		}
	}
	return end
}
