package sqlite

import (
	"context"
	"errors"
	"testing"
)

func TestBell(t *testing.T) {
	b := newBell()
	for range 3 { // before anybody listens, and nobody is held up
		b.ring()
	}
	got, err := listener{b}.WaitForNotification(t.Context())
	if err != nil || got != inserted {
		t.Fatalf("notification %v, error %v", got, err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if got, err := (listener{b}).WaitForNotification(ended); !errors.Is(err, context.Canceled) {
		t.Fatalf("it rang once too often: %v, error %v", got, err)
	}
}
