package network

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// setns moves the calling thread. Tests make it fail.
var setns = func(fd int) error { return unix.Setns(fd, unix.CLONE_NEWNET) }

// within runs fn on a thread that is in the network namespace ns. Sockets that fn opens stay there.
func within(ns *os.File, fn func() error) error {
	return onThread(func() error {
		return setns(int(ns.Fd()))
	}, fn)
}

// withinNew runs fn on a thread that is in a network namespace made for it.
func withinNew(fn func() error) error {
	return onThread(func() error {
		return unix.Unshare(unix.CLONE_NEWNET)
	}, fn)
}

// onThread runs enter and fn on a thread of their own and brings the thread back. One that does not come back is never used for
// anything else: its goroutine ends while still tied to it, and so the runtime ends it too.
func onThread(enter, fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// The runtime cannot end the main thread, and others look there for the namespace of the process. It is held here
			// so that the work happens on another one.
			done <- onThread(enter, fn)
			runtime.UnlockOSThread()
			return
		}
		home, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			runtime.UnlockOSThread()
			done <- err
			return
		}
		defer home.Close()
		if err := enter(); err != nil {
			runtime.UnlockOSThread()
			done <- fmt.Errorf("enter a network namespace: %w", err)
			return
		}
		finished := false
		defer func() {
			if !finished { // fn has panicked or ended its goroutine
				done <- errors.New("work in a network namespace did not end as it should")
			}
		}()
		err = fn()
		finished = true
		if setns(int(home.Fd())) == nil {
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	return <-done
}
