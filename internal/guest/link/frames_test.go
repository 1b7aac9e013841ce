package link

import (
	"bytes"
	"encoding/binary"
	"io"
	"testing"
)

// writes records each Write.
type writes struct {
	io.ReadWriteCloser
	all [][]byte
}

func (w *writes) Write(p []byte) (int, error) {
	w.all = append(w.all, bytes.Clone(p))
	return len(p), nil
}

func header(kind byte, length int) []byte {
	h := make([]byte, frameHeader)
	h[1] = kind
	binary.BigEndian.PutUint32(h[8:], uint32(length))
	return h
}

func TestFramesGoOutWhole(t *testing.T) {
	w := &writes{}
	f := &frames{ReadWriteCloser: w}
	const update = 1
	large := bytes.Repeat([]byte("x"), maxKept)
	for _, p := range [][]byte{
		header(frameData, 5), []byte("hello"),
		header(frameData, 0), // a stream that opens or ends
		header(update, 1<<20),
		header(frameData, len(large)), large,
		header(frameData, frameHeader), header(frameData, 7), // data that looks like a header
		header(frameData, 1), []byte("!"),
	} {
		if n, err := f.Write(p); n != len(p) || err != nil {
			t.Fatal(n, err)
		}
	}
	want := [][]byte{
		append(header(frameData, 5), "hello"...),
		header(frameData, 0),
		header(update, 1<<20),
		append(header(frameData, len(large)), large...),
		append(header(frameData, frameHeader), header(frameData, 7)...),
		append(header(frameData, 1), '!'),
	}
	if len(w.all) != len(want) {
		t.Fatalf("%d writes, want %d", len(w.all), len(want))
	}
	for i := range want {
		if !bytes.Equal(w.all[i], want[i]) {
			t.Errorf("write %d is %.40q, want %.40q", i, w.all[i], want[i])
		}
	}
}
