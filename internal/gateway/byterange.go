package gateway

import (
	"fmt"
	"math"
	"strings"
)

// byteRange is a part of something, in bytes.
type byteRange struct{ start, length int64 }

// header is the range as Content-Range writes it.
func (b byteRange) header(size int64) string {
	return fmt.Sprintf("bytes %d-%d/%d", b.start, b.start+b.length-1, size)
}

// rangeAnswer says how a Range header is to be answered.
type rangeAnswer int

const (
	rangeWhole rangeAnswer = iota // with everything: there is no range, or none that has to be honoured
	rangePart
	rangeNone // with a refusal: nothing of it is there
)

// readRange reads a Range header about something of that size. It honours one range: several at once, other units and what
// cannot be read are answered with the whole, which any client must put up with.
func readRange(header string, size int64) (byteRange, rangeAnswer) {
	unit, set, ok := strings.Cut(header, "=")
	if !ok || !strings.EqualFold(unit, "bytes") || strings.Contains(set, ",") || size == 0 {
		return byteRange{}, rangeWhole
	}
	first, last, ok := strings.Cut(strings.Trim(set, " \t"), "-")
	if !ok {
		return byteRange{}, rangeWhole
	}
	from, fromGiven, fromOK := readPosition(first)
	to, toGiven, toOK := readPosition(last)
	switch {
	case !fromOK || !toOK || !fromGiven && !toGiven || fromGiven && toGiven && to < from:
		return byteRange{}, rangeWhole
	case !fromGiven && to == 0, fromGiven && from >= size:
		return byteRange{}, rangeNone
	case !fromGiven: // the last so many
		from = max(size-to, 0)
		to = size - 1
	case !toGiven:
		to = size - 1
	}
	to = min(to, size-1)
	return byteRange{from, to - from + 1}, rangePart
}

// readPosition reads digits. Numbers that are too large for any file are as good as the largest.
func readPosition(s string) (n int64, given, ok bool) {
	for _, c := range []byte(s) {
		if c < '0' || c > '9' {
			return 0, false, false
		}
		if d := int64(c - '0'); n > (math.MaxInt64-d)/10 {
			n = math.MaxInt64
		} else {
			n = n*10 + d
		}
	}
	return n, s != "", true
}

// tagListed says whether a list of entity tags, as If-Match and If-None-Match have it, names tag. weak takes a weak tag for
// as good as a strong one.
func tagListed(list, tag string, weak bool) bool {
	for one := range strings.SplitSeq(list, ",") {
		one = strings.Trim(one, " \t")
		if weak {
			one = strings.TrimPrefix(one, "W/")
		}
		if one == "*" || one == tag {
			return true
		}
	}
	return false
}
