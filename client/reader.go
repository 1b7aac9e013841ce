package client

import (
	"io"
	"sync"
)

// errorKeeper remembers why reading failed: net/http tells of a broken body only that the request broke.
type errorKeeper struct {
	r   io.Reader
	mu  sync.Mutex
	err error
}

func (k *errorKeeper) Read(p []byte) (int, error) {
	n, err := k.r.Read(p)
	if err != nil && err != io.EOF {
		k.mu.Lock()
		k.err = err
		k.mu.Unlock()
	}
	return n, err
}

func (k *errorKeeper) failure() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.err
}
