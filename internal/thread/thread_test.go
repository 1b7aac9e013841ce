package thread_test

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/internal/thread"
)

// No thread that was apart is used for anything else, and the first one is never taken.
func TestApart(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root may make namespaces")
	}
	own, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	elsewhere := func() (n int) {
		t.Helper()
		tasks, err := filepath.Glob("/proc/self/task/*/ns/net")
		if err != nil {
			t.Fatal(err)
		}
		for _, task := range tasks {
			if ns, err := os.Readlink(task); err == nil && ns != own {
				n++
			}
		}
		return n
	}
	onPurpose := errors.New("on purpose")
	for range 50 {
		err := thread.InNewNetwork(func() error {
			if unix.Gettid() == unix.Getpid() {
				t.Error("on the first thread")
			}
			if ns, err := os.Readlink("/proc/thread-self/ns/net"); err != nil || ns == own {
				t.Errorf("in %s, %v", ns, err)
			}
			return onPurpose
		})
		if !errors.Is(err, onPurpose) {
			t.Fatal(err)
		}
	}
	for deadline := time.Now().Add(time.Minute); elsewhere() > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d threads are still in other namespaces", elsewhere())
		}
	}
	if now, err := os.Readlink("/proc/self/ns/net"); err != nil || now != own {
		t.Errorf("the process is in %s, %v", now, err)
	}
}

func TestInNetwork(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root may enter namespaces")
	}
	var ns *os.File
	err := thread.InNewNetwork(func() (err error) { ns, err = os.Open("/proc/thread-self/ns/net"); return err })
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	err = thread.InNetwork(ns, func() error {
		here, err := os.Stat("/proc/thread-self/ns/net")
		if err != nil {
			return err
		}
		there, err := ns.Stat()
		if err == nil && !os.SameFile(here, there) {
			t.Error("another namespace")
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	plain, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	if err := thread.InNetwork(plain, func() error { return nil }); !errors.Is(err, unix.EINVAL) {
		t.Errorf("a file that is no namespace: %v", err)
	}
}

func TestApartIsLeft(t *testing.T) {
	if err := thread.Apart(func() error { runtime.Goexit(); return nil }); err == nil {
		t.Error("work that ended its goroutine has succeeded")
	}
}
