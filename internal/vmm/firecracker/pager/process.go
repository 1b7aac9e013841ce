package pager

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// watchProcess waits for the end of a process, by its pidfd, which it takes over. Nothing but the poller waits. The channel
// is closed when the process has ended.
func watchProcess(fd int) (f *os.File, done <-chan struct{}, err error) {
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, nil, errors.Join(fmt.Errorf("pager: %w", err), unix.Close(fd))
	}
	f = os.NewFile(uintptr(fd), "pidfd")
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("pager: %w", err), f.Close())
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		// The poller calls again when the descriptor becomes readable, which is when the process has ended.
		err := raw.Read(func(fd uintptr) bool {
			n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
			return err == nil && n > 0
		})
		if err == nil || errors.Is(err, os.ErrClosed) {
			return
		}
		// No poller: a thread waits instead.
		for {
			_, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, -1)
			if !errors.Is(err, unix.EINTR) {
				return
			}
		}
	}()
	return f, ended, nil
}

// peer is the process at the other end of a connection.
type peer struct {
	pid, uid int
	pidfd    int
}

// peerOf finds out who connected, or for one who connected: who listens.
func peerOf(conn syscall.Conn) (p peer, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return peer{}, fmt.Errorf("pager: %w", err)
	}
	var inner error
	err = raw.Control(func(fd uintptr) {
		var cred *unix.Ucred
		if cred, inner = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); inner != nil {
			return
		}
		p = peer{pid: int(cred.Pid), uid: int(cred.Uid)}
		// The kernel remembers the very process since 6.5; before, all there is is its number.
		if p.pidfd, inner = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, soPeerPidfd); inner != nil {
			p.pidfd, inner = unix.PidfdOpen(p.pid, 0)
		}
	})
	if err = errors.Join(err, inner); err != nil {
		return peer{}, fmt.Errorf("pager: find out who connected: %w", err)
	}
	unix.CloseOnExec(p.pidfd)
	return p, nil
}

// soPeerPidfd is SO_PEERPIDFD.
const soPeerPidfd = 77

// killProcess ends a process by its pidfd.
func killProcess(f *os.File) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	err = raw.Control(func(fd uintptr) { inner = unix.PidfdSendSignal(int(fd), unix.SIGKILL, nil, 0) })
	if errors.Is(inner, unix.ESRCH) {
		inner = nil
	}
	return errors.Join(err, inner)
}
