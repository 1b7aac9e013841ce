package link

import (
	"bytes"
	"errors"
	"io"
	"testing"
	"testing/iotest"
)

func TestReadResets(t *testing.T) {
	a, b := newNonce(), newNonce()
	for _, c := range []struct {
		name, in string
		want     []nonce
	}{
		{"one", string(resetLine(a)), []nonce{a}},
		{"the last of several", string(resetLine(a)) + string(resetLine(b)), []nonce{b}},
		{"a torn one before", "RESET 00" + string(resetLine(b)), []nonce{b}},
		{"a carriage return", "RESET " + a.String() + "\r\n", []nonce{a}},
		{"unknown verbs", "HELLO\n\n\x00\xff\n" + string(resetLine(a)), []nonce{a}},
		{"too long", "RESET " + string(bytes.Repeat([]byte("0"), 4*maxLine)) + "\n", nil},
		{"the end of a long line looks like one", string(bytes.Repeat([]byte("x"), maxLine)) + "RESET " + a.String() + "\n", nil},
		{"unfinished", "RESET " + a.String(), nil},
		{"too short", "RESET 00\n", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			var got []nonce
			err := readResets(bytes.NewReader([]byte(c.in)), func(n nonce) { got = append(got, n) })
			if err != io.EOF {
				t.Fatal(err)
			}
			if len(got) != len(c.want) || len(got) > 0 && got[0] != c.want[0] {
				t.Fatalf("got %v, want %v", got, c.want)
			}
		})
	}
}

func FuzzReadResets(f *testing.F) {
	f.Add([]byte("RESET 00112233445566778899aabbccddeeff\n"))
	f.Add([]byte("\nRESET 0011\r\nx"))
	f.Add(bytes.Repeat([]byte("RESET "), 100))
	f.Fuzz(func(t *testing.T, in []byte) {
		whole := 0
		if err := readResets(bytes.NewReader(in), func(nonce) { whole++ }); err != io.EOF {
			t.Fatal(err)
		}
		// However the bytes arrive, every line that counts is well formed, and arriving slowly never loses one.
		slow := 0
		if err := readResets(iotest.OneByteReader(bytes.NewReader(in)), func(nonce) { slow++ }); err != io.EOF {
			t.Fatal(err)
		}
		if whole > slow {
			t.Fatalf("%d resets at once, %d byte by byte", whole, slow)
		}
	})
}

func FuzzParseControl(f *testing.F) {
	f.Add([]byte("RESET 00112233445566778899aabbccddeeff"))
	f.Add([]byte("RESET "))
	f.Fuzz(func(t *testing.T, line []byte) {
		n, err := parseControl(line)
		if err == nil && !bytes.EqualFold(bytes.TrimSuffix(line, []byte("\r")), []byte(resetVerb+n.String())) {
			t.Fatalf("%q reads as %s", line, n)
		}
	})
}

func FuzzScan(f *testing.F) {
	f.Add([]byte("0123456789abcdef"), []byte("0123456789abcdef"), []byte("rest"), uint8(3))
	f.Add([]byte("aaaaaaaaaaaaaaaa"), []byte("aaa"), []byte("a"), uint8(0))
	f.Add([]byte{}, []byte{0}, []byte{1}, uint8(1))
	f.Fuzz(func(t *testing.T, mark, before, after []byte, cut uint8) {
		var n nonce
		copy(n[:], mark)
		stream := append(append(append([]byte(nil), before...), n[:]...), after...)
		// Some bytes have been read by somebody else, who remembers the last of them.
		read := min(int(cut), len(stream))
		var seen tail
		seen.add(stream[:read])
		want := bytes.Index(stream, n[:]) + nonceSize
		if want < read { // the nonce was read long ago, with more behind it: a host never does that
			t.Skip()
		}
		r := iotest.HalfReader(bytes.NewReader(stream[read:]))
		rest, err := scan(r, n, seen.bytes())
		if err != nil {
			t.Fatal(err)
		}
		more, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		if got := append(rest, more...); !bytes.Equal(got, stream[want:]) {
			t.Fatalf("behind the nonce comes %q, want %q", got, stream[want:])
		}
	})
}

func TestScanEnds(t *testing.T) {
	if _, err := scan(bytes.NewReader(make([]byte, 9999)), nonce{1}, nil); !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
}

func FuzzTail(f *testing.F) {
	f.Add([]byte("abcdefghijklmnopqrstuvwxyz"), uint8(3), uint8(20))
	f.Fuzz(func(t *testing.T, in []byte, a, b uint8) {
		var got tail
		i := min(int(a), len(in))
		j := min(i+int(b), len(in))
		got.add(in[:i])
		got.add(in[i:j])
		got.add(in[j:])
		if want := in[max(0, len(in)-nonceSize):]; !bytes.Equal(got.bytes(), want) {
			t.Fatalf("%q, want %q", got.bytes(), want)
		}
	})
}
