package network

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A thread that does not come back from a namespace is never used again.
func TestThreadThatStays(t *testing.T) {
	w := newWorld(t)
	own, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	foreign := func() int {
		t.Helper()
		tasks, err := filepath.Glob("/proc/self/task/*/ns/net")
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for _, task := range tasks {
			if ns, err := os.Readlink(task); err == nil && ns != own {
				n++
			}
		}
		return n
	}
	real := setns
	defer func() { setns = real }()
	for range 20 {
		calls := 0
		setns = func(fd int) error {
			if calls++; calls%2 == 0 {
				return unix.EPERM
			}
			return real(fd)
		}
		if err := within(w.host, func() error {
			if unix.Gettid() == unix.Getpid() {
				t.Error("the main thread is in a namespace")
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	for deadline := time.Now().Add(10 * time.Second); foreign() > 0; {
		if time.Now().After(deadline) {
			t.Fatalf("%d threads are in a namespace that is not theirs", foreign())
		}
		time.Sleep(time.Millisecond)
	}
	setns = func(int) error { return unix.EPERM }
	if err := within(w.host, func() error { t.Error("ran outside"); return nil }); !errors.Is(err, unix.EPERM) {
		t.Errorf("a namespace that cannot be entered: %v", err)
	}
}
