package format

import "math/bits"

// codeTable decodes a Huffman code by look-up. The next bits of the input index it; a code longer than that finds a
// pointer to a second part, which the bits after those index.
//
// An entry holds, from its lowest bit: the number of bits that the whole code takes (4), flags (4), the number of
// extra bits that follow the code (8), and a payload (16): the literal, the length or distance to which the extra bits
// are added, or where the second part begins.
type codeTable struct {
	entries []uint32
}

const (
	codeBits   = 15
	isLiteral  = 1 << 4
	isPointer  = 1 << 5
	isSpecial  = 1 << 6 // the end of the block, or no code at all
	extraShift = 8
	extraBits  = 15
	payload    = 16

	endOfBlock = 1 // payload of a special entry

	maxCode      = 15 // bits
	literalBits  = 11 // that index the table of literals and lengths, and how many more a code can have
	literalRest  = maxCode - literalBits
	distanceBits = 8
	distanceRest = maxCode - distanceBits
	orderBits    = 7 // of the code for code lengths; none is longer

	maxLiterals  = 288
	maxDistances = 32
)

// build makes the table for codes of the given lengths, by symbol; 0 is a symbol that does not occur. index is how many
// bits index the first part. A set of lengths that is no code is false; one that is incomplete is accepted
// only where it has a single code of one bit, which encoders use for a single distance.
func (t *codeTable) build(lengths []uint8, index int, symbols []uint32) bool {
	var count, code [maxCode + 2]int
	longest := 0
	for _, n := range lengths {
		count[n]++
		longest = max(longest, int(n))
	}
	count[0] = 0
	left := 1
	for n := 1; n <= maxCode; n++ {
		left = left<<1 - count[n]
		if left < 0 {
			return false
		}
		code[n+1] = (code[n] + count[n]) << 1
	}
	if left > 0 && longest > 1 {
		return false
	}
	t.clear(index)
	for symbol, n := range lengths {
		if n > 0 {
			reversed := int(bits.Reverse16(uint16(code[n])) >> (16 - n))
			code[n]++
			t.set(reversed, int(n), index, symbols[symbol]|uint32(n))
		}
	}
	return true
}

// clear makes a first part that has no code.
func (t *codeTable) clear(index int) {
	if cap(t.entries) < 1<<index {
		t.entries = make([]uint32, 0, 4<<index)
	}
	t.entries = t.entries[:1<<index]
	for i := range t.entries {
		t.entries[i] = isSpecial
	}
}

// set enters a code, given as it stands in the input, wherever the bits after it may be anything.
func (t *codeTable) set(code, length, index int, entry uint32) {
	if length <= index {
		for i := code; i < 1<<index; i += 1 << length {
			t.entries[i] = entry
		}
		return
	}
	rest := maxCode - index
	first := code & (1<<index - 1)
	if t.entries[first]&isPointer == 0 {
		start := len(t.entries)
		for range 1 << rest {
			t.entries = append(t.entries, isSpecial)
		}
		t.entries[first] = uint32(start)<<payload | isPointer
	}
	part := t.entries[t.entries[first]>>payload:]
	for i := code >> index; i < 1<<rest; i += 1 << (length - index) {
		part[i] = entry
	}
}

// Entries by symbol, but for the length of the code (RFC 1951, 3.2.5).
var (
	literalSymbols  = makeLiteralSymbols()
	distanceSymbols = makeDistanceSymbols()
	orderSymbols    = makeOrderSymbols()
)

func makeLiteralSymbols() (s [maxLiterals]uint32) {
	for i := range 256 {
		s[i] = uint32(i)<<payload | isLiteral
	}
	s[256] = endOfBlock<<payload | isSpecial
	length := uint32(3)
	for i := 257; i < 285; i++ {
		extra := uint32(max(i-261, 0) / 4)
		s[i] = length<<payload | extra<<extraShift
		length += 1 << extra
	}
	s[285] = 258 << payload
	s[286], s[287] = isSpecial, isSpecial
	return s
}

func makeDistanceSymbols() (s [maxDistances]uint32) {
	distance := uint32(1)
	for i := range 30 {
		extra := uint32(max(i-2, 0) / 2)
		s[i] = distance<<payload | extra<<extraShift
		distance += 1 << extra
	}
	s[30], s[31] = isSpecial, isSpecial
	return s
}

func makeOrderSymbols() (s [19]uint32) {
	for i := range s {
		s[i] = uint32(i) << payload
	}
	return s
}

// fixedTables makes the tables of a block with fixed codes (3.2.6).
func (d *deflate) fixedTables() {
	if d.fixed {
		return
	}
	for i := range maxLiterals {
		switch {
		case i < 144, i >= 280:
			d.lengths[i] = 8
		case i < 256:
			d.lengths[i] = 9
		default:
			d.lengths[i] = 7
		}
	}
	d.literals.build(d.lengths[:maxLiterals], literalBits, literalSymbols[:])
	for i := range maxDistances {
		d.lengths[i] = 5
	}
	d.distances.build(d.lengths[:maxDistances], distanceBits, distanceSymbols[:])
	d.fixed = true
}

// codeOrder is the order in which a block gives the lengths of the codes for code lengths (3.2.7).
var codeOrder = [19]uint8{16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15}

// dynamicTables reads the codes that a block brings along.
func (d *deflate) dynamicTables() error {
	d.fixed = false
	d.refill()
	literals, distances, orders := int(d.take(5))+257, int(d.take(5))+1, int(d.take(4))+4
	if literals > 286 || distances > 30 {
		return errInvalid
	}
	var order [19]uint8
	for i := range orders {
		d.refill()
		order[codeOrder[i]] = uint8(d.take(3))
	}
	if !d.literals.build(order[:], orderBits, orderSymbols[:]) {
		return errInvalid
	}
	if err := d.codeLengths(d.lengths[:literals+distances]); err != nil {
		return err
	}
	if d.lengths[256] == 0 {
		return errEndless
	}
	complete := d.literals.build(d.lengths[:literals], literalBits, literalSymbols[:]) &&
		d.distances.build(d.lengths[literals:literals+distances], distanceBits, distanceSymbols[:])
	if !complete {
		return errInvalid
	}
	return nil
}

// codeLengths reads the lengths of codes, by the code that is in the table of literals for the moment.
func (d *deflate) codeLengths(lengths []uint8) error {
	for i := 0; i < len(lengths); {
		d.refill()
		e := d.literals.entries[d.bits&(1<<orderBits-1)]
		if e&isSpecial != 0 {
			return errInvalid
		}
		d.take(uint(e & codeBits))
		symbol := uint8(e >> payload)
		if symbol < 16 {
			lengths[i] = symbol
			i++
			continue
		}
		value, times := uint8(0), 0
		switch symbol {
		case 16:
			if i == 0 {
				return errInvalid
			}
			value, times = lengths[i-1], 3+int(d.take(2))
		case 17:
			times = 3 + int(d.take(3))
		default:
			times = 11 + int(d.take(7))
		}
		if times > len(lengths)-i {
			return errInvalid
		}
		for range times {
			lengths[i] = value
			i++
		}
	}
	return nil
}
