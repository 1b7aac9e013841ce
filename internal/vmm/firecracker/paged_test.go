package firecracker

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"

	spore "github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/testbed"
	"github.com/sporevm/spore/internal/vmm"
	"github.com/sporevm/spore/internal/vmm/firecracker/fcdouble"
	"github.com/sporevm/spore/internal/vmm/firecracker/pager"
	"github.com/sporevm/spore/internal/vmm/vmmtest"
)

// testPager serves every thaw from processes of this test's own program; see TestMain.
type testPager struct{ started *pager.Handle }

func (p *testPager) Wants(string, vmm.Patches) bool { return true }

func (p *testPager) config(dir string) pager.Config {
	return pager.Config{ID: "test", Dir: dir, Socket: filepath.Join(dir, "pager.none"), UID: os.Geteuid(), GID: os.Getegid()}
}

func (p *testPager) Start(ctx context.Context, s PagerSpec) (_ PagerProcess, err error) {
	spec, err := pager.NewSpec(ctx, s.Memory, s.Size, s.Patches, s.Dir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, spec.Close()) }()
	cfg := p.config(s.Dir)
	cfg.Socket = s.Socket
	if s.UID >= 0 {
		cfg.UID, cfg.GID = s.UID, s.UID
	}
	h, err := pager.Start(ctx, cfg, spec)
	if err != nil {
		return nil, err
	}
	p.started = h
	return pagerHandle{h}, nil
}

func (p *testPager) Adopt(ctx context.Context, dir string) (PagerProcess, error) {
	h, err := pager.Adopt(ctx, p.config(dir))
	if err != nil {
		return nil, err
	}
	return pagerHandle{h}, nil
}

func (p *testPager) Clean(ctx context.Context, dir string) error {
	return pager.Clean(ctx, p.config(dir))
}

type pagerHandle struct{ *pager.Handle }

func (h pagerHandle) Kill(ctx context.Context) error { return h.Stop(ctx) }

func needPager(t testing.TB) {
	t.Helper()
	needRoot(t)
	if _, err := os.Stat("/dev/userfaultfd"); err != nil {
		t.Skipf("this host has no /dev/userfaultfd: %v", err)
	}
}

// TestConformancePaged runs the suite with memory that is served by faults.
func TestConformancePaged(t *testing.T) {
	needPager(t)
	kernel, modules := testbed.KernelFiles(t)
	initrd := vmmtest.Initrd(t, t.TempDir(), modules)
	vmmtest.Run(t, vmmtest.Harness{
		New: func(t testing.TB) vmm.Engine {
			return doubleEngine(t, fcdouble.DefaultVersion, func(o *Options) { o.Pager = &testPager{} })
		},
		Kernel: kernel, Initrd: initrd, MemoryMiB: 128, Processes: true, Cables: map[string]bool{vmmtest.CableTap: false},
	})
}

// engines are the stand-in and, where one is named, the real Firecracker.
func engines(t *testing.T, test func(t *testing.T, open func(edit func(*Options)) *Engine)) {
	t.Run("double", func(t *testing.T) {
		needRoot(t)
		test(t, func(edit func(*Options)) *Engine { return doubleEngine(t, "", edit) })
	})
	t.Run("real", func(t *testing.T) {
		realEngine(t, nil)
		test(t, func(edit func(*Options)) *Engine { return realEngine(t, edit) })
	})
}

// TestSameLayer compares what Firecracker says was written, where its memory is served by a pager and where it is a file,
// with what the page map says: without the pages that are as in the base, they are the same layer byte for byte.
func TestSameLayer(t *testing.T) {
	engines(t, func(t *testing.T, open func(func(*Options)) *Engine) {
		e := open(nil)
		vm, cfg := bootTiny(t, e)
		if _, err := vm.Memory(); err != nil {
			t.Fatal(err)
		}
		must(t, vm.Pause(t.Context()))
		state := save(t, vm)
		must(t, vm.Kill(t.Context()))

		run := func(e *Engine) *machine {
			child := cfg
			child.Dir = filepath.Join(t.TempDir(), "vm")
			must(t, os.Mkdir(child.Dir, 0o700))
			vm := thaw(t, e, child, state, nil).(*machine)
			must(t, vm.Resume(t.Context()))
			if e.opts.Binaries[0] == os.Getenv("SPORE_FIRECRACKER") {
				counts(t, vm)
			}
			must(t, vm.Pause(t.Context()))
			return vm
		}
		mapped := run(e)
		byPages := layer(t, mapped, cfg.Memory)
		ctx := t.Context()
		must(t, mapped.jail.api.createSnapshot(ctx, snapshotCreateParams{
			SnapshotType: snapshotDiff, SnapshotPath: filepath.Join(nameScratch, nameState), MemFilePath: filepath.Join(nameScratch, nameDiff),
		}))
		f, err := mapped.jail.openScratch(nameDiff)
		must(t, err)
		defer f.Close()
		ranges, err := extents(f, ramBytes(cfg))
		must(t, err)
		mem, err := mapped.Memory()
		must(t, err)
		byDiff := layerOf(t, mem, ranges, cfg.Memory)
		if !slices.EqualFunc(byPages, byDiff, func(a, b patchRun) bool { return a.off == b.off && bytes.Equal(a.data, b.data) }) {
			t.Errorf("%d pages by the page map and %d by Firecracker, or with other bytes", len(byPages), len(byDiff))
		}
		t.Logf("%d pages differ from the base", len(byPages))
	})
}

// TestPaged thaws from a base and patches by faults, twice over, and across a change of servers.
func TestPaged(t *testing.T) {
	needPager(t)
	engines(t, func(t *testing.T, open func(func(*Options)) *Engine) {
		ctx := t.Context()
		p := &testPager{}
		e := open(func(o *Options) { o.Pager = p })
		vm, cfg := bootTiny(t, e)
		if e.opts.Binaries[0] == os.Getenv("SPORE_FIRECRACKER") {
			counts(t, vm)
		}
		must(t, vm.Pause(ctx))
		stopped, state := counter(t, vm), save(t, vm)
		must(t, vm.Kill(ctx))
		child := func() vmm.Config {
			c := cfg
			c.Dir = filepath.Join(t.TempDir(), "vm")
			must(t, os.Mkdir(c.Dir, 0o700))
			return c
		}
		one := thaw(t, e, child(), state, nil).(*machine)
		if got := counter(t, one); got != stopped {
			t.Errorf("thawed at %d, frozen at %d", got, stopped)
		}
		must(t, one.Resume(ctx))
		if e.opts.Binaries[0] == os.Getenv("SPORE_FIRECRACKER") {
			counts(t, one)
		}
		must(t, one.Release())
		adopted, err := e.Adopt(ctx, one.cfg)
		must(t, err)
		killAtEnd(t, adopted)
		must(t, adopted.Pause(ctx))
		later, patches, state2 := counter(t, adopted), layer(t, adopted, cfg.Memory), save(t, adopted)
		if got := layer(t, adopted, cfg.Memory); len(got) != len(patches) {
			t.Errorf("%d pages are the VM's own, and after a snapshot %d", len(patches), len(got))
		}
		two := thaw(t, e, child(), state2, patches).(*machine)
		if got := counter(t, two); got != later {
			t.Errorf("thawed at %d, frozen at %d", got, later)
		}
		if got := layer(t, two, cfg.Memory); len(got) < len(patches) {
			t.Errorf("%d pages were patched, %d are the VM's own", len(patches), len(got))
		}

		// A pager that dies takes its VM along.
		must(t, two.Resume(ctx))
		must(t, syscall.Kill(p.started.PID(), syscall.SIGKILL))
		<-two.Done()
		if err := two.Err(); err == nil || !strings.Contains(err.Error(), "memory") || spore.CodeOf(err) != spore.CodeConflict {
			t.Errorf("the end of the pager is told as %v", err)
		}
		nothingLeft(t, two.cfg, two.PID(), two.jail.cgroup)
	})
}

// cutOff is a connection to Firecracker that breaks as whoever asked gives up.
type cutOff struct {
	net.Conn
	asked, answered func() // after the request was sent, and before its answer is looked at
}

func (c cutOff) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.asked()
	return n, err
}

func (c cutOff) Read(b []byte) (int, error) {
	if _, err := c.Conn.Read(b); err != nil {
		return 0, err
	}
	c.answered()
	return 0, io.ErrUnexpectedEOF
}

// TestSnapshotGivenUp takes snapshots that come to nothing: Firecracker tells once only what was written, and what it told
// then is in the next one all the same.
func TestSnapshotGivenUp(t *testing.T) {
	needPager(t)
	giveUp := func(t *testing.T, vm *machine, leave func(*cutOff, func())) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		api := vm.jail.api
		defer func() {
			vm.jail.api.close()
			vm.jail.api = api
		}()
		vm.jail.api = newClient(func(ctx context.Context) (net.Conn, error) {
			conn, err := vm.jail.dial(ctx, nameAPI)
			c := cutOff{conn, func() {}, func() {}}
			leave(&c, cancel)
			return c, err
		})
		if err := vm.SaveState(ctx, nil); !errors.Is(err, context.Canceled) {
			t.Fatalf("the snapshot that nobody waited for: %v", err)
		}
	}
	ways := map[string]func(t *testing.T, vm *machine) *machine{
		"asked": func(t *testing.T, vm *machine) *machine {
			giveUp(t, vm, func(c *cutOff, cancel func()) { c.asked = cancel })
			return vm
		},
		"answered": func(t *testing.T, vm *machine) *machine {
			giveUp(t, vm, func(c *cutOff, cancel func()) { c.answered = cancel })
			return vm
		},
		"not written down, and the server ends": func(t *testing.T, vm *machine) *machine {
			written := filepath.Join(vm.jail.work, workWritten)
			must(t, os.Rename(written, written+".aside"))
			must(t, os.Mkdir(written, 0o700)) // no file takes its place
			if err := vm.SaveState(t.Context(), nil); err == nil {
				t.Fatal("there was nowhere to write down what is the VM's own")
			}
			must(t, os.Remove(written))
			must(t, os.Rename(written+".aside", written))
			must(t, vm.Release())
			adopted, err := vm.eng.Adopt(t.Context(), vm.cfg)
			must(t, err)
			killAtEnd(t, adopted)
			return adopted.(*machine)
		},
	}
	engines(t, func(t *testing.T, open func(func(*Options)) *Engine) {
		e := open(func(o *Options) { o.Pager = &testPager{} })
		vm, cfg := bootTiny(t, e)
		must(t, vm.Pause(t.Context()))
		state := save(t, vm)
		must(t, vm.Kill(t.Context()))
		for name, way := range ways {
			t.Run(name, func(t *testing.T) {
				child := cfg
				child.Dir = filepath.Join(t.TempDir(), "vm")
				must(t, os.Mkdir(child.Dir, 0o700))
				vm := thaw(t, e, child, state, nil).(*machine)
				must(t, vm.Resume(t.Context()))
				if e.opts.Binaries[0] == os.Getenv("SPORE_FIRECRACKER") {
					counts(t, vm)
				} else {
					fills(t, vm)
				}
				must(t, vm.Pause(t.Context()))
				mem, err := vm.Memory()
				must(t, err)
				whole := layerOf(t, mem, []vmm.Range{{Length: ramBytes(cfg)}}, cfg.Memory)
				vm = way(t, vm)
				if got := layer(t, vm, cfg.Memory); !reflect.DeepEqual(got, whole) || len(got) == 0 {
					t.Errorf("%d pages are not as in the base, and the snapshot has %d of them", len(whole), len(got))
				}
			})
		}
	})
}

// unwilling is a pager that notes whether it was asked.
type unwilling struct {
	Pager
	asked bool
}

func (p *unwilling) Wants(string, vmm.Patches) bool {
	p.asked = true
	return false
}

// TestNoPagerWithMisplacedPages maps memory where Firecracker would not tell which pages were written.
func TestNoPagerWithMisplacedPages(t *testing.T) {
	for _, tc := range []struct {
		version Version
		mib     int
		want    bool
	}{
		{Version{1, 13, 2}, 4096, true}, {Version{1, 14, 0}, 3072, true}, {Version{1, 14, 0}, 3074, false}, {Version{1, 14, 1}, 4096, false},
		{Version{1, 14, 2}, 4096, true}, {Version{1, 17, 0}, 4096, true},
	} {
		p := &unwilling{}
		j := &jail{work: t.TempDir(), binary: &Binary{Version: tc.version}}
		must(t, os.Mkdir(j.root(), 0o700))
		m := newMachine(&Engine{opts: Options{Pager: p}, log: slog.Default()}, vmm.Config{MemoryMiB: tc.mib, Memory: "/dev/null"}, "", shape{}, j)
		backend, err := m.openMemoryFor(t.Context(), nil)
		must(t, err)
		if p.asked != tc.want || backend.BackendType != backendFile {
			t.Errorf("%s with %d MiB: the pager was asked: %t", tc.version, tc.mib, p.asked)
		}
	}
}
