package link

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"io"
)

const nonceSize = 16

// nonce marks the place in a byte stream from which on it is to be believed.
type nonce [nonceSize]byte

func newNonce() (n nonce) {
	rand.Read(n[:]) // never fails: crypto/rand ends the process instead
	return n
}

func parseNonce(s string) (n nonce, err error) {
	if len(s) != hex.EncodedLen(nonceSize) {
		return n, fmt.Errorf("a nonce has %d hex digits, not %d characters", hex.EncodedLen(nonceSize), len(s))
	}
	_, err = hex.Decode(n[:], []byte(s))
	return n, err
}

func (n nonce) String() string { return hex.EncodeToString(n[:]) }

// tail remembers the last bytes of a stream, as many as a nonce has.
type tail struct {
	buf [nonceSize]byte
	n   int
}

func (t *tail) add(p []byte) {
	if len(p) >= nonceSize {
		t.n = copy(t.buf[:], p[len(p)-nonceSize:])
		return
	}
	keep := min(t.n, nonceSize-len(p))
	copy(t.buf[:], t.buf[t.n-keep:t.n])
	t.n = keep + copy(t.buf[keep:], p)
}

func (t *tail) bytes() []byte { return t.buf[:t.n] }

// scan reads from r until it has seen n, and returns what was read behind it. seen holds the bytes that came just
// before: the nonce may end in, or lie wholly in, what an earlier reader took for its own.
func scan(r io.Reader, n nonce, seen []byte) (rest []byte, err error) {
	if bytes.HasSuffix(seen, n[:]) {
		return nil, nil
	}
	window := make([]byte, 0, nonceSize+4096)
	window = append(window, seen[max(0, len(seen)-nonceSize+1):]...)
	for {
		have := len(window)
		got, err := r.Read(window[have:cap(window)])
		window = window[:have+got]
		if i := bytes.Index(window, n[:]); i >= 0 {
			return window[i+nonceSize:], nil
		}
		if err != nil {
			return nil, err
		}
		keep := min(len(window), nonceSize-1)
		window = window[:copy(window, window[len(window)-keep:])]
	}
}
