package firecracker

import (
	"bytes"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/sporevm/spore/internal/vmm/vmlog"
)

// printAll writes as Firecracker does, but waits for a place in the pipe.
func printAll(t *testing.T, printer *os.File, text []byte) {
	t.Helper()
	raw, err := printer.SyscallConn()
	must(t, err)
	eventually(t, "somebody reads the pipe", func() bool {
		err := raw.Control(func(fd uintptr) {
			for len(text) > 0 {
				n, err := syscall.Write(int(fd), text)
				if err != nil {
					if !errors.Is(err, syscall.EAGAIN) {
						t.Error(err)
					}
					return
				}
				text = text[n:]
			}
		})
		must(t, err)
		return len(text) == 0
	})
}

// TestRecordOutlastsFullDisk prints more than the pipe holds while nothing can be written down: it is read on all the same.
func TestRecordOutlastsFullDisk(t *testing.T) {
	pipe := filepath.Join(t.TempDir(), "pipe")
	printer, err := makePipe(pipe, -1)
	must(t, err)
	r, err := record(pipe, "/dev/full", slog.New(slog.DiscardHandler))
	must(t, err)
	printAll(t, printer, make([]byte, 1<<20))
	must(t, printer.Close())
	<-r.Done()
}

// TestPooledConsoleIsCut prints as much on the console of a VM whose process was started ahead, in another directory, as it
// takes for the console to be cut.
func TestPooledConsoleIsCut(t *testing.T) {
	dir := t.TempDir()
	before, after := filepath.Join(dir, "before"), filepath.Join(dir, "after")
	must(t, os.Mkdir(before, 0o700))
	pipe := filepath.Join(before, workPipe)
	printer, err := makePipe(pipe, -1)
	must(t, err)
	r, err := record(pipe, filepath.Join(before, workConsole), slog.New(slog.DiscardHandler))
	must(t, err)
	must(t, os.Rename(before, after))
	printAll(t, printer, append(make([]byte, 3*vmlog.Keep), panicked...))
	must(t, printer.Close())
	<-r.Done()
	text, err := vmlog.Tail(filepath.Join(after, workConsole), 3*vmlog.Keep)
	must(t, err)
	if !bytes.HasSuffix(text, panicked) || len(text) > 2*vmlog.Keep {
		t.Errorf("%d bytes of the console that end in %q", len(text), text[max(0, len(text)-30):])
	}
}
