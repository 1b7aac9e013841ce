// Package thread runs what changes the thread that it runs on: its namespaces, its root, its rights.
package thread

import (
	"errors"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// Apart runs fn on a thread that ends with it, so that fn may leave it in whatever namespaces it likes. It is never the process's
// first thread: the runtime cannot end that one, and what the process sees of itself under /proc/self is what that thread sees. A
// fn that panics takes the process with it, as any goroutine does; one that ends its goroutine is an error.
func Apart(fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			done <- Apart(fn) // while this goroutine keeps the first thread, that one goes to another
			runtime.UnlockOSThread()
			return
		}
		err := errors.New("the work on a thread of its own did not come to its end")
		defer func() { done <- err }()
		err = fn() // never unlocked: the thread ends with the goroutine
	}()
	return <-done
}

// InNetwork is Apart in the network namespace ns. What fn opens there stays there. An error of entering it is the system's own.
func InNetwork(ns *os.File, fn func() error) error {
	return Apart(func() error {
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return os.NewSyscallError("setns", err)
		}
		return fn()
	})
}

// InNewNetwork is Apart in a network namespace of its own, which is gone afterwards unless fn keeps it.
func InNewNetwork(fn func() error) error {
	return Apart(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return os.NewSyscallError("unshare", err)
		}
		return fn()
	})
}
