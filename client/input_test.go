package client

import (
	"bytes"
	"errors"
	"io"
	"testing"
	"testing/iotest"
)

func TestInputArrivesWhole(t *testing.T) {
	sent := bytes.Repeat([]byte("0123456789abcdef"), 100_000)
	broken := errors.New("broken")
	for name, r := range map[string]io.Reader{
		"at once":       bytes.NewReader(sent),
		"data with EOF": iotest.DataErrReader(bytes.NewReader(sent)),
		"broken":        io.MultiReader(bytes.NewReader(sent), iotest.ErrReader(broken)),
	} {
		t.Run(name, func(t *testing.T) {
			in := readInput(r)
			defer in.stop()
			var got []byte
			for {
				p, err := in.next()
				if len(p) > inputChunk {
					t.Fatalf("a piece of %d bytes", len(p))
				}
				got = append(got, p...)
				if err == nil {
					continue
				}
				if !errors.Is(err, io.EOF) && !errors.Is(err, broken) {
					t.Fatal(err)
				}
				break
			}
			if !bytes.Equal(got, sent) {
				t.Fatalf("%d bytes arrived, want %d", len(got), len(sent))
			}
		})
	}
}

// gate hands out one byte for each value of its channel.
type gate chan struct{}

func (g gate) Read(p []byte) (int, error) {
	if _, ok := <-g; !ok {
		return 0, io.EOF
	}
	p[0] = 'x'
	return 1, nil
}

func TestInputIsGathered(t *testing.T) {
	g := make(gate)
	in := readInput(g)
	for range 3 {
		g <- struct{}{}
	}
	close(g) // the reader has come back for a fourth time, and so has stored three
	in.awaitEnd()
	if p, err := in.next(); string(p) != "xxx" || err != nil {
		t.Fatalf("%q, %v", p, err)
	}
	if _, err := in.next(); err != io.EOF {
		t.Fatal(err)
	}
}

func (in *input) awaitEnd() {
	in.mu.Lock()
	defer in.mu.Unlock()
	for in.err == nil {
		in.changed.Wait()
	}
}

func TestStoppedInputReadsNoFurther(t *testing.T) {
	in := readInput(&countdown{n: 100 << 20})
	in.mu.Lock()
	for len(in.data) <= inputChunk-inputRead {
		in.changed.Wait()
	}
	in.mu.Unlock()
	in.stop()
	if p, err := in.next(); len(p) > inputChunk || err != nil {
		t.Fatalf("%d bytes were read ahead, %v", len(p), err)
	}
}

type countdown struct{ n int }

func (c *countdown) Read(p []byte) (int, error) {
	if c.n == 0 {
		return 0, io.EOF
	}
	n := min(len(p), c.n)
	c.n -= n
	return n, nil
}
