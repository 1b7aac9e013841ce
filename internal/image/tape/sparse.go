package tape

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// gnuSparse reads the map of the old GNU form: four stretches in the header and more in blocks that follow it.
func (t *Reader) gnuSparse(b *block, h *Header, stored int64) error {
	real, err := b.number(483, 12)
	if err != nil {
		return err
	}
	h.Size = real
	var fragments []fragment
	add := func(f []byte) error {
		for ; len(f) >= 24; f = f[24:] {
			if f[0] == 0 || f[12] == 0 {
				return nil
			}
			offset, err := parseNumber(f[:12])
			if err != nil {
				return err
			}
			length, err := parseNumber(f[12:24])
			if err != nil {
				return err
			}
			fragments = append(fragments, fragment{offset, length})
		}
		return nil
	}
	if err := add(b[386:482]); err != nil {
		return err
	}
	for more := b[482] != 0; more; {
		var ext block
		if err := t.readFull(ext[:]); err != nil {
			return noEOF(err)
		}
		if err := add(ext[:504]); err != nil {
			return err
		}
		if len(fragments)*24 > maxSpecial {
			return fmt.Errorf("%w: the sparse map of %q is too long", ErrFormat, h.Name)
		}
		more = ext[504] != 0
	}
	return t.setFragments(h, fragments, stored)
}

// paxSparse reads the map of the three PAX forms, or lets an ordinary file be one stretch.
func (t *Reader) paxSparse(records paxRecords, h *Header, stored int64) error {
	major, hasMajor := records.get("GNU.sparse.major")
	minor, _ := records.get("GNU.sparse.minor")
	_, hasMap := records.get("GNU.sparse.map")
	size, hasSize, err := records.number("GNU.sparse.size")
	if err != nil {
		return err
	}
	if real, ok, err := records.number("GNU.sparse.realsize"); err != nil {
		return err
	} else if ok {
		size, hasSize = real, true
	}

	var fragments []fragment
	switch {
	case hasMajor && major == "1" && minor == "0":
		if fragments, stored, err = t.leadingMap(stored); err != nil {
			return err
		}
	case hasMajor && (major != "0" || minor != "0" && minor != "1"):
		return fmt.Errorf("%w: %q has a sparse map of the unknown form %s.%s", ErrFormat, h.Name, major, minor)
	case hasMap:
		s, _ := records.get("GNU.sparse.map")
		if fragments, err = parsePairs(strings.Split(s, ",")); err != nil {
			return err
		}
	case hasSize:
		var pairs []string
		for _, r := range records {
			switch r.key {
			case "GNU.sparse.offset", "GNU.sparse.numbytes":
				if (r.key == "GNU.sparse.offset") != (len(pairs)%2 == 0) {
					return fmt.Errorf("%w: the sparse map of %q is out of order", ErrFormat, h.Name)
				}
				pairs = append(pairs, r.value)
			}
		}
		if fragments, err = parsePairs(pairs); err != nil {
			return err
		}
	default:
		if h.Type == TypeReg && stored > 0 || h.Type == TypeDir {
			t.fragments = []fragment{{0, stored}}
		}
		return nil
	}
	if !hasSize {
		return fmt.Errorf("%w: the sparse file %q has no size", ErrFormat, h.Name)
	}
	h.Size = size
	return t.setFragments(h, fragments, stored)
}

// leadingMap reads the map that precedes the data of a file: decimal numbers, one a line, padded to a block. It
// returns what is left of the stored size.
func (t *Reader) leadingMap(stored int64) ([]fragment, int64, error) {
	var (
		numbers []string
		digits  []byte
		used    int64
		want    = int64(1) // numbers to read; the first one says how many pairs follow
	)
	for int64(len(numbers)) < want {
		if used+blockSize > stored || used > maxSpecial {
			return nil, 0, fmt.Errorf("%w: a sparse map does not end", ErrFormat)
		}
		var b block
		if err := t.readFull(b[:]); err != nil {
			return nil, 0, noEOF(err)
		}
		used += blockSize
		for _, c := range b {
			if int64(len(numbers)) == want {
				break
			}
			if c != '\n' {
				if digits = append(digits, c); len(digits) > 20 {
					return nil, 0, fmt.Errorf("%w: a sparse map holds an overlong number", ErrFormat)
				}
				continue
			}
			numbers = append(numbers, string(digits))
			digits = digits[:0]
			if len(numbers) == 1 {
				pairs, err := strconv.ParseUint(numbers[0], 10, 31)
				if err != nil || pairs > maxSpecial/4 {
					return nil, 0, fmt.Errorf("%w: a sparse map has a wrong count", ErrFormat)
				}
				want += 2 * int64(pairs)
			}
		}
	}
	fragments, err := parsePairs(numbers[1:])
	return fragments, stored - used, err
}

func parsePairs(s []string) ([]fragment, error) {
	if len(s) == 1 && s[0] == "" {
		return nil, nil
	}
	if len(s)%2 != 0 {
		return nil, fmt.Errorf("%w: a sparse map has an odd count of numbers", ErrFormat)
	}
	fragments := make([]fragment, 0, len(s)/2)
	for ; len(s) > 0; s = s[2:] {
		offset, err1 := strconv.ParseInt(s[0], 10, 64)
		length, err2 := strconv.ParseInt(s[1], 10, 64)
		if err1 != nil || err2 != nil {
			return nil, fmt.Errorf("%w: a sparse map holds something that is no number", ErrFormat)
		}
		fragments = append(fragments, fragment{offset, length})
	}
	return fragments, nil
}

// setFragments checks that the stretches ascend, stay inside the file and add up to what is stored.
func (t *Reader) setFragments(h *Header, fragments []fragment, stored int64) error {
	var end, sum int64
	for _, f := range fragments {
		if f.offset < end || f.length < 0 || f.offset > math.MaxInt64-f.length {
			return fmt.Errorf("%w: the sparse map of %q is out of order", ErrFormat, h.Name)
		}
		end = f.offset + f.length
		sum += f.length
	}
	if h.Size < 0 || end > h.Size || sum != stored {
		return fmt.Errorf("%w: the sparse map of %q does not fit its size", ErrFormat, h.Name)
	}
	t.fragments = fragments
	return nil
}
