package client

import (
	"bytes"
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

func readAll(r io.Reader) (names, data []string, err error) {
	events := newEventReader(r)
	for {
		ev, err := events.next()
		if err != nil {
			return names, data, err
		}
		names, data = append(names, ev.name), append(data, string(ev.data))
	}
}

func TestEventReader(t *testing.T) {
	in := ": hello\n\nid: 1\nevent: log\ndata: {\"a\":1}\n\nevent:job\r\ndata: x\r\ndata:y\r\n\r\nevent: empty\n\ndata\n\nevent: half\ndata: z"
	for _, r := range []io.Reader{strings.NewReader(in), iotest.OneByteReader(strings.NewReader(in))} {
		names, data, err := readAll(r)
		if err != io.EOF || strings.Join(names, ",") != "log,job," || strings.Join(data, "|") != `{"a":1}|x`+"\ny|" {
			t.Errorf("%q %q %v", names, data, err)
		}
	}
	if _, _, err := readAll(io.LimitReader(endless{}, 2*maxEvent)); err == nil || err == io.EOF {
		t.Errorf("an endless event: %v", err)
	}
}

type endless struct{}

func (endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = 'x'
	}
	return len(p), nil
}

func FuzzEvents(f *testing.F) {
	for _, seed := range []string{"", "data: x\n\n", ":\n\n", "event: a\ndata\ndata:\n\n", "data: x", "\r\n\r\n", "id: 1\nretry: 2\ndata: \x00\n\n"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		_, data, err := readAll(bytes.NewReader(in))
		if err != io.EOF {
			t.Fatalf("%q: %v", in, err)
		}
		for _, d := range data {
			if !bytes.Contains(in, []byte("data")) || len(d) > len(in) {
				t.Errorf("%q out of %q", d, in)
			}
		}
	})
}
