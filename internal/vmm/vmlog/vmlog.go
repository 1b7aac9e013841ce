// Package vmlog keeps the ends of what guests and their hypervisors print, in files of bounded size.
//
// The server writes these files, never the hypervisor: what a guest can make a hypervisor say has no bound, and nobody would cut
// the file while no server runs. A hypervisor gets a socket or a named pipe instead, see Pipe, which takes a little and drops the
// rest when nobody reads.
package vmlog

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// Keep is how much of a log is kept, at least, in bytes; twice as much is the most that is on disk.
const Keep = 256 << 10

// Log is a file of which only the end is kept. At every moment, the end of the server included, the file is
// there with the last Keep bytes that were written, if there were as many. Its directory may be moved meanwhile. It is not safe for
// use by many goroutines.
type Log struct {
	dir  *os.File
	name string // in dir
	keep int64
	f    *os.File
	size int64
}

// Open opens the log at path for appending, and makes it if it is not there.
func Open(path string) (*Log, error) { return open(path, Keep) }

func open(path string, keep int64) (*Log, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_APPEND|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("vmlog: %w", err)
	}
	fi, err := f.Stat()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("vmlog: %w", err), f.Close())
	}
	dir, err := os.OpenFile(filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("vmlog: %w", err), f.Close())
	}
	return &Log{dir: dir, name: filepath.Base(path), keep: keep, f: f, size: fi.Size()}, nil
}

// Write appends p, of which only the end may be kept. On error nothing of p was kept, or the beginning.
func (l *Log) Write(p []byte) (int, error) {
	all := len(p)
	if cut := int64(all) - l.keep; cut > 0 {
		p = p[cut:]
	}
	if l.size+int64(len(p)) > 2*l.keep {
		if err := l.cut(); err != nil {
			return 0, fmt.Errorf("vmlog: cut %s: %w", l.name, err)
		}
	}
	n, err := l.f.Write(p)
	l.size += int64(n)
	if err != nil {
		return n, fmt.Errorf("vmlog: %w", err)
	}
	return all, nil
}

// cut puts a file with the end of the log in the place of the log.
func (l *Log) cut() error {
	tail, err := readTail(l.f, l.keep)
	if err != nil {
		return err
	}
	path := fmt.Sprintf("/proc/self/fd/%d/%s", l.dir.Fd(), l.name)
	aside := path + ".new"
	f, err := os.OpenFile(aside, os.O_RDWR|os.O_CREATE|os.O_TRUNC|os.O_APPEND|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	if _, err = f.Write(tail); err == nil {
		err = os.Rename(aside, path)
	}
	if err != nil {
		return errors.Join(err, f.Close(), os.Remove(aside))
	}
	old := l.f
	l.f, l.size = f, int64(len(tail))
	return old.Close()
}

// Close closes the file, which stays.
func (l *Log) Close() error { return errors.Join(l.f.Close(), l.dir.Close()) }

// Follower writes what comes out of a stream to a Log.
type Follower struct {
	src  io.ReadCloser
	done chan struct{}
}

// Follow takes over src and writes what comes out of it to the log at path, until src ends or Stop is called. What cannot be
// written, on a full disk, is dropped, so that the guest goes on.
func Follow(path string, src io.ReadCloser, log *slog.Logger) (*Follower, error) {
	out, err := Open(path)
	if err != nil {
		return nil, errors.Join(err, src.Close())
	}
	f := &Follower{src: src, done: make(chan struct{})}
	go func() {
		defer close(f.done)
		err := f.follow(out, log.With("file", path))
		if closeErr := src.Close(); !errors.Is(closeErr, os.ErrClosed) && !errors.Is(closeErr, net.ErrClosed) {
			err = errors.Join(err, closeErr)
		}
		if err = errors.Join(err, out.Close()); err != nil {
			log.Warn("a console or log is no longer recorded", "file", path, "error", err)
		}
	}()
	return f, nil
}

func (f *Follower) follow(out *Log, log *slog.Logger) error {
	buf := make([]byte, 16<<10)
	dropping := false
	for {
		n, err := f.src.Read(buf)
		if n > 0 {
			_, writeErr := out.Write(buf[:n])
			if writeErr != nil && !dropping {
				log.Warn("what a VM prints is dropped", "error", writeErr)
			}
			dropping = writeErr != nil
		}
		switch {
		case err == nil:
		case err == io.EOF, errors.Is(err, os.ErrClosed), errors.Is(err, net.ErrClosed), errors.Is(err, syscall.ECONNRESET):
			return nil // the other side has ended, or Stop was called
		default:
			return err
		}
	}
}

// Done is closed when the stream has ended and all that came out of it was written.
func (f *Follower) Done() <-chan struct{} { return f.done }

// Stop ends the following. What is still in a pipe stays there for the next who follows it.
func (f *Follower) Stop() {
	f.src.Close() // Follow says what is wrong with it
	<-f.done
}

// Pipe makes a named pipe at path and opens its end for a hypervisor to print to. That end is open for reading too, so that it is
// never without a reader, and does not block: what does not fit, because no server reads, is dropped.
func Pipe(path string) (*os.File, error) {
	if err := unix.Mkfifo(path, 0o600); err != nil {
		return nil, fmt.Errorf("vmlog: make a pipe: %w", err)
	}
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, fmt.Errorf("vmlog: open a pipe: %w", err)
	}
	f := os.NewFile(uintptr(fd), path)
	// Only now, with a file that the runtime takes for a blocking one: it would make it one again as it is passed on.
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, errors.Join(fmt.Errorf("vmlog: open a pipe: %w", err), f.Close())
	}
	return f, nil
}

// OpenPipe opens the server's end of a named pipe. Reading from it ends when the last hypervisor that prints to it has.
func OpenPipe(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, fmt.Errorf("vmlog: open a pipe: %w", err)
	}
	fi, err := f.Stat()
	if err == nil && fi.Mode()&fs.ModeNamedPipe == 0 {
		err = errors.New("it is no pipe")
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("vmlog: %s: %w", path, err), f.Close())
	}
	return f, nil
}

// Tail reads at most the last limit bytes of the log at path; one that is not there is empty.
func Tail(path string, limit int) ([]byte, error) {
	if limit <= 0 {
		return nil, nil
	}
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("vmlog: %w", err)
	}
	defer f.Close()
	text, err := readTail(f, int64(limit))
	if err != nil {
		return nil, fmt.Errorf("vmlog: %w", err)
	}
	return text, nil
}

func readTail(f *os.File, limit int64) ([]byte, error) {
	fi, err := f.Stat()
	if err != nil {
		return nil, err
	}
	n := min(fi.Size(), limit)
	buf := make([]byte, n)
	got, err := f.ReadAt(buf, fi.Size()-n)
	if err == io.EOF {
		err = nil
	}
	return buf[:got], err
}

// LastLines is the end of a log for an error message: at most n lines of printable text.
func LastLines(text []byte, n int) string {
	text = bytes.Map(func(r rune) rune {
		if r == '\n' || r >= ' ' && r != 0x7f && r != 0xfffd {
			return r
		}
		return -1
	}, text)
	lines := bytes.Split(bytes.TrimSpace(text), []byte("\n"))
	if len(lines) > n {
		lines = lines[len(lines)-n:]
	}
	return string(bytes.Join(lines, []byte("; ")))
}
