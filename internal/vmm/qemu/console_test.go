package qemu

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sporevm/spore/internal/vmm"
	"github.com/sporevm/spore/internal/vmm/vmlog"
)

// used is how many bytes the files in a VM's directory have.
func used(t *testing.T, dir string) (n int64) {
	t.Helper()
	must(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			var fi os.FileInfo
			if fi, err = d.Info(); err == nil {
				n += fi.Size()
			}
		}
		return err
	}))
	return n
}

func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(3 * time.Minute); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal(what)
		}
	}
}

// A guest floods its console while a server records it, while none does, and while the next one does.
func TestFloodedConsole(t *testing.T) {
	e := harness(t).New(t)
	h := harness(t)
	dir := t.TempDir()
	cfg := vmm.Config{ID: "vm", Dir: filepath.Join(dir, "vm"), VCPUs: 1, MemoryMiB: 128, Kernel: h.Kernel, Initrd: h.Initrd,
		Cmdline: "quiet", Memory: filepath.Join(dir, "memory")}
	must(t, os.Mkdir(cfg.Dir, 0o700))
	vm, err := e.Boot(t.Context(), cfg)
	must(t, err)
	t.Cleanup(func() { must(t, e.Clean(context.Background(), cfg.Dir)) })
	shows := func(vm vmm.VM, want string) func() bool {
		return func() bool {
			text, err := vm.Console(4096)
			must(t, err)
			if n := used(t, cfg.Dir); n > 3*vmlog.Keep+64<<10 { // a new file may stand beside the old one for a moment
				t.Fatalf("the VM's directory holds %d bytes", n)
			}
			return strings.Contains(string(text), want)
		}
	}
	ask(t, vm, "print 540 1")
	await(t, "the flood does not end", shows(vm, "printed 1"))

	for fd := 1; fd <= 2; fd++ {
		at, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", vm.PID(), fd))
		fi, statErr := os.Stat(filepath.Join(cfg.Dir, "qemu", nameOutput))
		if err != nil || statErr != nil || filepath.Base(at) != nameOutput || fi.Mode()&fs.ModeNamedPipe == 0 {
			t.Errorf("QEMU's output %d goes to %s (%v, %v)", fd, at, err, statErr)
		}
	}

	must(t, vm.Release())
	before := used(t, cfg.Dir)
	conn, err := (&workdir{dir: openDir(t, filepath.Join(cfg.Dir, "qemu"))}).dial(socketControl)
	must(t, err)
	greet(t, conn)
	fmt.Fprintln(conn, "print 150 2")
	must(t, conn.SetDeadline(time.Now().Add(3*time.Minute)))
	buf := make([]byte, 64)
	n, err := conn.Read(buf) // the guest has written it all, to nobody
	if err != nil || n == 0 {
		t.Error(err)
	}
	must(t, conn.Close())
	if after := used(t, cfg.Dir); after != before {
		t.Errorf("without a server the VM's directory went from %d to %d bytes", before, after)
	}

	next, err := harness(t).New(t).Adopt(t.Context(), cfg)
	must(t, err)
	ask(t, next, "print 1 3")
	await(t, "the console is not recorded after a change of servers", shows(next, "printed 3"))
	must(t, next.Kill(t.Context()))
	if text, err := next.Console(vmlog.Keep); err != nil || !strings.Contains(string(text), "printed 1\n") && !strings.Contains(string(text), "printed 1\r\n") {
		t.Errorf("what was recorded before is gone: %d bytes, %v", len(text), err)
	}
}

func openDir(t *testing.T, path string) *os.File {
	t.Helper()
	dir, err := os.Open(path)
	must(t, err)
	t.Cleanup(func() { dir.Close() })
	return dir
}

// TestManyComeAndGo connects to a socket that nobody answers for a while.
func TestManyComeAndGo(t *testing.T) {
	w, err := openWorkdir(t.TempDir())
	must(t, err)
	defer w.close()
	f, err := w.listen(socketControl)
	must(t, err)
	defer f.Close()
	for i := range 50 {
		conn, err := w.dial(socketControl)
		if err != nil {
			t.Fatalf("after %d that have gone again: %v", i, err)
		}
		must(t, conn.Close())
	}
}
