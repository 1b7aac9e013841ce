package client

import (
	"io"
	"sync"
)

const (
	inputRead  = 64 << 10  // asked of Stdin at once
	inputChunk = 512 << 10 // sent at once, at most
)

// input reads ahead while a piece is on its way: each piece has to be answered before the next may go, and a program that
// writes little by little would otherwise send it so.
type input struct {
	mu      sync.Mutex
	changed sync.Cond
	data    []byte
	err     error // of the last Read
	stopped bool
}

func readInput(r io.Reader) *input {
	in := &input{}
	in.changed.L = &in.mu
	go in.fill(r)
	return in
}

func (in *input) fill(r io.Reader) {
	buf := make([]byte, inputRead)
	for {
		n, err := r.Read(buf)
		in.mu.Lock()
		in.data = append(in.data, buf[:n]...)
		in.err = err
		in.changed.Broadcast()
		for len(in.data) > inputChunk-inputRead && !in.stopped {
			in.changed.Wait()
		}
		done := in.err != nil || in.stopped
		in.mu.Unlock()
		if done {
			return
		}
	}
}

// next waits for input and answers all that is there. After the last of it comes the error of the Read that ended it.
func (in *input) next() ([]byte, error) {
	in.mu.Lock()
	defer in.mu.Unlock()
	for len(in.data) == 0 && in.err == nil {
		in.changed.Wait()
	}
	if len(in.data) == 0 {
		return nil, in.err
	}
	data := in.data
	in.data = nil
	in.changed.Broadcast()
	return data, nil
}

// stop makes this read no further than it has begun to.
func (in *input) stop() {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.stopped = true
	in.changed.Broadcast()
}
