package agent

import (
	"fmt"
	"testing"
	"time"
)

func TestSlowReaderDoesNotBlockOthers(t *testing.T) {
	h := newHub()
	h.patience = 10 * time.Millisecond
	slow, quick := h.join(), h.join()
	done := make(chan int)
	go func() {
		total := 0
		for {
			c, state := quick.read()
			switch state {
			case readChunk:
				total += len(c.data)
			case readNothing:
				<-quick.wake
			default:
				done <- total
				return
			}
		}
	}()
	const chunks = 100
	for range chunks {
		h.publish(stdout, make([]byte, readSize))
	}
	h.end()
	if got := <-done; got != chunks*readSize {
		t.Fatalf("the quick reader got %d bytes", got)
	}
	if _, state := slow.read(); state != readCut {
		t.Fatalf("the slow reader is in state %v", state)
	}
	if h.size > hubLimit+readSize {
		t.Fatalf("%d bytes are held", h.size)
	}
}

func TestSlowReaderHoldsTheProcessBack(t *testing.T) {
	h := newHub()
	rd := h.join()
	published := make(chan struct{})
	go func() {
		defer close(published)
		for range 100 {
			h.publish(stdout, make([]byte, readSize))
		}
	}()
	got := 0
	for got < 100*readSize {
		c, state := rd.read()
		if state == readNothing {
			<-rd.wake
			continue
		}
		h.mu.Lock()
		if h.size > hubLimit {
			t.Errorf("%d bytes are held", h.size)
		}
		h.mu.Unlock()
		got += len(c.data)
	}
	<-published
	// A reader that leaves lets the process go on.
	h.publish(stdout, make([]byte, hubLimit))
	time.AfterFunc(time.Millisecond, rd.leave)
	h.publish(stdout, make([]byte, hubLimit))
}

func TestOutputIsGatheredForABusyReader(t *testing.T) {
	h := newHub()
	rd := h.join()
	write := func(from channel, text string) { h.publish(from, []byte(text)) }
	write(stdout, "a")
	write(stdout, "b")
	write(stderr, "c")
	write(stdout, "d")
	late := h.join() // sees what comes from now on, and nothing else
	write(stdout, "e")
	read := func(r *reader) (out []string) {
		for c, state := r.read(); state == readChunk; c, state = r.read() {
			out = append(out, fmt.Sprint(c.from, string(c.data)))
		}
		return out
	}
	if got, want := fmt.Sprint(read(rd)), "[0ab 1c 0d 0e]"; got != want {
		t.Errorf("the busy reader got %s, want %s", got, want)
	}
	if got, want := fmt.Sprint(read(late)), "[0e]"; got != want {
		t.Errorf("the late reader got %s, want %s", got, want)
	}
	late.leave()
	for range 3 {
		h.publish(stdout, make([]byte, maxChunk/2))
	}
	if c, _ := rd.read(); len(c.data) != maxChunk {
		t.Errorf("gathered %d bytes, want %d", len(c.data), maxChunk)
	}
}
