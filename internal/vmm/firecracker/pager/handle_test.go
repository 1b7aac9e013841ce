package pager

import (
	"errors"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestNotWatched starts a pager that cannot be watched: it is ended, and not waited for instead.
func TestNotWatched(t *testing.T) {
	in, hold, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	defer hold.Close()
	child, err := os.StartProcess("/bin/cat", []string{"cat"}, &os.ProcAttr{Files: []*os.File{in, os.Stderr, os.Stderr}})
	if err != nil {
		t.Fatal(err)
	}
	conn, theirs, err := socketPair()
	if err != nil {
		t.Fatal(err)
	}
	defer theirs.Close()
	refused := make(chan error, 1)
	go func() {
		_, err := newHandle(Config{}, child.Pid, child, -1, conn) // no descriptor of it was to be had
		refused <- err
	}()
	select {
	case err = <-refused:
	case <-time.After(10 * time.Second):
		t.Fatal("it is waited for, and never ends")
	}
	if !errors.Is(err, unix.EBADF) {
		t.Errorf("a process that cannot be watched: %v", err)
	}
	if err := child.Signal(unix.Signal(0)); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("the process is not gone: %v", err)
	}
}
