package tape

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"
)

// block is one header block.
type block [blockSize]byte

func (b *block) typeflag() byte { return b[156] }

// checksumHolds compares the stored sum with both ways that tars have computed it: over unsigned and signed bytes.
func (b *block) checksumHolds() bool {
	want, err := b.number(148, 8)
	if err != nil {
		return false
	}
	var unsigned, signed int64
	for i, c := range b {
		if i >= 148 && i < 156 {
			c = ' '
		}
		unsigned += int64(c)
		signed += int64(int8(c))
	}
	return want == unsigned || want == signed
}

// number decodes a numeric field: octal digits, or a two's complement number with the top bit of its first byte set.
func (b *block) number(at, length int) (int64, error) {
	return parseNumber(b[at : at+length])
}

func parseNumber(f []byte) (int64, error) {
	if len(f) > 0 && f[0]&0x80 != 0 {
		var inv byte // 0x00 for a positive number, 0xff for a negative one
		if f[0]&0x40 != 0 {
			inv = 0xff
		}
		var x uint64
		for i, c := range f {
			c ^= inv
			if i == 0 {
				c &= 0x7f
			}
			if x>>56 > 0 {
				return 0, fmt.Errorf("%w: a number is out of range", ErrFormat)
			}
			x = x<<8 | uint64(c)
		}
		if x>>63 > 0 {
			return 0, fmt.Errorf("%w: a number is out of range", ErrFormat)
		}
		if inv == 0xff {
			return ^int64(x), nil
		}
		return int64(x), nil
	}
	s := strings.Trim(string(bytes.TrimRight(cBytes(f), " ")), " \x00")
	if s == "" {
		return 0, nil
	}
	x, err := strconv.ParseUint(s, 8, 63)
	if err != nil {
		return 0, fmt.Errorf("%w: %q is not an octal number", ErrFormat, s)
	}
	return int64(x), nil
}

// cBytes cuts f at its first NUL that follows something else than NULs and blanks.
func cBytes(f []byte) []byte {
	f = bytes.TrimLeft(f, " \x00")
	if i := bytes.IndexByte(f, 0); i >= 0 {
		f = f[:i]
	}
	return f
}

// decode reads the fields that every dialect of tar shares, and the name prefix of those that have one.
func (b *block) decode() (*Header, error) {
	h := &Header{
		Name:     cString(b[0:100]),
		Linkname: cString(b[157:257]),
		Type:     b.typeflag(),
	}
	if h.Type == '7' { // contiguous file
		h.Type = TypeReg
	}
	for _, f := range []struct {
		to         *int64
		at, length int
	}{
		{&h.Mode, 100, 8}, {&h.UID, 108, 8}, {&h.GID, 116, 8}, {&h.Size, 124, 12}, {&h.ModTime.Sec, 136, 12},
	} {
		n, err := b.number(f.at, f.length)
		if err != nil {
			return nil, err
		}
		*f.to = n
	}
	h.AccTime = h.ModTime
	if string(b[257:262]) != "ustar" {
		return h, nil
	}
	if h.Type == TypeChar || h.Type == TypeBlock {
		var err error
		if h.Major, err = b.number(329, 8); err != nil {
			return nil, err
		}
		if h.Minor, err = b.number(337, 8); err != nil {
			return nil, err
		}
	}
	if string(b[257:265]) == "ustar\x0000" {
		prefix := b[345:500]
		if string(b[508:512]) == "tar\x00" { // star keeps times at the end of the prefix
			prefix = b[345:476]
		}
		if p := cString(prefix); p != "" {
			h.Name = p + "/" + h.Name
		}
	}
	return h, nil
}
