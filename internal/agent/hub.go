package agent

import (
	"sync"
	"time"
)

// channel says where output came from.
type channel uint8

const (
	stdout channel = iota
	stderr
	terminal
)

// chunk is a piece of output. Its data does not change once a reader has it.
type chunk struct {
	from channel
	data []byte
}

const (
	// hubLimit bounds the output of one process that is held for readers, in bytes.
	hubLimit = 256 << 10
	// laggardPatience is how long a reader may hold up others that have read everything.
	laggardPatience = 5 * time.Second
	// maxChunk bounds the pieces that output is gathered into while its readers are busy, in bytes.
	maxChunk = 64 << 10
)

// hub hands the output of one process to any number of readers. While the only reader is slow the process is held back,
// as by a pipe. With nobody reading, output is thrown away. A reader that holds up others for too long is cut off.
type hub struct {
	patience time.Duration

	mu      sync.Mutex
	room    sync.Cond // a reader has moved or left
	chunks  []chunk
	first   uint64 // sequence number of chunks[0]
	size    int    // bytes in chunks
	readers map[*reader]struct{}
	ended   bool
}

// reader is one place in the output of a process.
type reader struct {
	hub  *hub
	next uint64        // sequence number of the chunk to read next
	cut  bool          // it was too slow
	wake chan struct{} // has a value after anything changed for this reader
}

func newHub() *hub {
	h := &hub{patience: laggardPatience, readers: map[*reader]struct{}{}}
	h.room.L = &h.mu
	return h
}

// join adds a reader that sees what is published from now on.
func (h *hub) join() *reader {
	h.mu.Lock()
	defer h.mu.Unlock()
	r := &reader{hub: h, next: h.first + uint64(len(h.chunks)), wake: make(chan struct{}, 1)}
	h.readers[r] = struct{}{}
	if h.ended {
		r.poke()
	}
	return r
}

func (r *reader) leave() {
	h := r.hub
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.readers, r)
	h.trim()
	h.room.Broadcast()
}

// publish gives a copy of data to the readers, and waits while there is no room.
func (h *hub) publish(from channel, data []byte) {
	h.mu.Lock()
	defer h.mu.Unlock()
	var full time.Time
	for len(h.readers) > 0 && h.size > 0 && h.size+len(data) > hubLimit {
		switch {
		case !h.uneven():
			full = time.Time{}
		case full.IsZero():
			full = time.Now()
			time.AfterFunc(h.patience, h.wakePublisher)
		case time.Since(full) >= h.patience:
			h.cutLaggards()
			continue
		}
		h.room.Wait()
	}
	if len(h.readers) == 0 {
		return
	}
	if last := h.unread(from); last != nil && len(last.data)+len(data) <= maxChunk {
		last.data = append(last.data, data...)
	} else {
		h.chunks = append(h.chunks, chunk{from, append([]byte(nil), data...)})
	}
	h.size += len(data)
	for r := range h.readers {
		r.poke()
	}
}

// wakePublisher has publish look again. It takes the lock, so that it does not come before publish waits.
func (h *hub) wakePublisher() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.room.Broadcast()
}

// unread is the newest chunk, if it came from there too and no reader has it yet: each chunk costs its readers the same,
// however small it is, and a program that writes a byte at a time would be held back by that.
func (h *hub) unread(from channel) *chunk {
	n := len(h.chunks)
	if n == 0 || h.chunks[n-1].from != from {
		return nil
	}
	for r := range h.readers {
		if r.next == h.first+uint64(n) {
			return nil
		}
	}
	return &h.chunks[n-1]
}

// end marks the end of the output: readers get what is left, then the end.
func (h *hub) end() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ended = true
	for r := range h.readers {
		r.poke()
	}
}

// uneven says whether some readers wait for output while others hold it up.
func (h *hub) uneven() bool {
	var waiting, holding bool
	for r := range h.readers {
		waiting = waiting || r.next == h.first+uint64(len(h.chunks))
		holding = holding || r.next == h.first
	}
	return waiting && holding
}

func (h *hub) cutLaggards() {
	for r := range h.readers {
		if r.next == h.first {
			r.cut = true
			delete(h.readers, r)
			r.poke()
		}
	}
	h.trim()
}

// trim drops what every reader has read.
func (h *hub) trim() {
	oldest := h.first + uint64(len(h.chunks))
	for r := range h.readers {
		oldest = min(oldest, r.next)
	}
	for h.first < oldest {
		h.size -= len(h.chunks[0].data)
		h.chunks[0] = chunk{}
		h.chunks = h.chunks[1:]
		h.first++
	}
}

func (r *reader) poke() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// readState says what a look at the output found.
type readState int

const (
	readNothing readState = iota // wait for wake
	readChunk
	readEnd
	readCut // too slow: output was lost
)

// read takes the next chunk, if there is one.
func (r *reader) read() (chunk, readState) {
	h := r.hub
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case r.cut:
		return chunk{}, readCut
	case r.next < h.first+uint64(len(h.chunks)):
		c := h.chunks[r.next-h.first]
		r.next++
		h.trim()
		h.room.Broadcast()
		return c, readChunk
	case h.ended:
		return chunk{}, readEnd
	}
	return chunk{}, readNothing
}
