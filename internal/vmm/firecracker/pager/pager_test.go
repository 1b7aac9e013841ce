package pager_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/vmm"
	"github.com/sporevm/spore/internal/vmm/firecracker/pager"
)

const mib = 1 << 20

// patches are pages in the order in which they are applied.
type patches []struct {
	off  int64
	data []byte
}

func (p patches) Each(ctx context.Context, fn func(int64, []byte) error) error {
	for _, x := range p {
		if err := fn(x.off, x.data); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// frozenVM is a memory on disk, and what it shows.
type frozenVM struct {
	dir     string
	base    string
	want    []byte
	patches patches
}

// newFrozen makes a memory of pages that are data, zeros and holes by chance, and patches over it.
func newFrozen(t testing.TB, size int64, seed uint64) *frozenVM {
	t.Helper()
	dir, err := os.MkdirTemp("", "pager-") // short, for sockets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	rnd := rand.New(rand.NewPCG(seed, 1))
	f := &frozenVM{dir: dir, base: filepath.Join(dir, "base"), want: make([]byte, size)}
	file, err := os.Create(f.base)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if err := file.Truncate(size); err != nil {
		t.Fatal(err)
	}
	for off := int64(0); off < size; {
		n := min(int64(1+rnd.IntN(20))*4096, size-off)
		part := f.want[off : off+n]
		switch rnd.IntN(3) {
		case 0: // a hole
			off += n
			continue
		case 1:
			random(rnd, part)
		} // else zeros that are written
		if _, err := file.WriteAt(part, off); err != nil {
			t.Fatal(err)
		}
		off += n
	}
	for range 30 {
		off := rnd.Int64N(size/4096) * 4096
		data := make([]byte, min(int64(1+rnd.IntN(20))*4096, size-off))
		if rnd.IntN(3) > 0 {
			random(rnd, data)
		}
		f.patches = append(f.patches, struct {
			off  int64
			data []byte
		}{off, data})
		copy(f.want[off:], data)
	}
	return f
}

func random(rnd *rand.Rand, b []byte) {
	for i := range b {
		b[i] = byte(rnd.Uint32())
	}
}

func (f *frozenVM) config() pager.Config {
	return pager.Config{ID: "s0123", Dir: f.dir, Socket: filepath.Join(f.dir, "uffd.sock"), UID: os.Getuid(), GID: os.Getgid()}
}

func (f *frozenVM) start(t testing.TB, cfg pager.Config) *pager.Handle {
	t.Helper()
	spec, err := pager.NewSpec(t.Context(), f.base, int64(len(f.want)), f.patches, f.dir)
	if err != nil {
		t.Fatal(err)
	}
	defer spec.Close()
	h, err := pager.Start(t.Context(), cfg, spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stop(t, h) })
	return h
}

// until waits for something that comes by itself.
func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: still not after a minute", what)
		}
	}
}

func stop(t testing.TB, h *pager.Handle) {
	t.Helper()
	if err := h.Stop(context.Background()); err != nil {
		t.Errorf("stop: %v", err)
	}
}

// regions are RAM in two parts, as a VMM with a hole for devices has it.
func (f *frozenVM) regions() []vmmRegion {
	half := int64(len(f.want)) / 8 * 3 &^ 4095
	return []vmmRegion{{Size: half, Page: 4096}, {Size: int64(len(f.want)) - half, Off: half, Page: 4096}}
}

func (f *frozenVM) vmm(t testing.TB, cfg pager.Config) *vmmProcess {
	t.Helper()
	return startVMM(t, vmmConfig{Socket: cfg.Socket, Regions: f.regions()})
}

func same(t testing.TB, got, want []byte) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%d bytes, not %d", len(got), len(want))
	}
	for i := 0; i < len(got); i += 4096 {
		if !bytes.Equal(got[i:i+4096], want[i:i+4096]) {
			t.Fatalf("page %d of %d differs", i/4096, len(got)/4096)
		}
	}
}

func stats(t testing.TB, h *pager.Handle) pager.Stats {
	t.Helper()
	s, err := h.Stats(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestMemory reads all of memory, by the kernel and by threads in many orders, and compares it byte by byte.
func TestMemory(t *testing.T) {
	for seed := range uint64(6) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			f := newFrozen(t, 2*mib+int64(seed)*28672, seed)
			if seed == 5 {
				f.want, f.patches = plain(t, f.base), nil
			}
			cfg := f.config()
			h := f.start(t, cfg)
			v := f.vmm(t, cfg)
			if seed%2 == 0 {
				same(t, v.memory(), f.want)
			} else {
				path := filepath.Join(f.dir, "copy")
				v.do(command{Op: "race", Off: int64(seed), Threads: 4, Path: path})
				got, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				same(t, got, f.want)
			}
			v.do(command{Op: "fill", Off: 8192, Byte: 7})
			if got := v.do(command{Op: "touch", Off: 8192}); got != "7" {
				t.Errorf("a written page holds %s", got)
			}
			// A page is counted after the guest has it.
			until(t, "all pages are counted once", func() bool {
				s := stats(t, h)
				return s.Copied+s.Zeroed == int64(len(f.want)/4096)
			})
			s := stats(t, h)
			if s.Percentile(1) == 0 {
				t.Errorf("stats %+v", s)
			}
			v.end()
			soon(t, h.Done(), "the pager ends with its VMM")
			if err := h.Err(); err != nil {
				t.Errorf("after the VMM's end: %v", err)
			}
		})
	}
}

func plain(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestRemoval gives memory back, as a balloon does: it is zeros from then on, whatever was frozen, touched or not.
func TestRemoval(t *testing.T) {
	f := newFrozen(t, 2*mib, 11)
	cfg := f.config()
	h := f.start(t, cfg)
	v := f.vmm(t, cfg)
	v.do(command{Op: "touch", Off: 0})
	v.do(command{Op: "fill", Off: 40960, Byte: 3})
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 40 {
		r := f.regions()[rnd.IntN(2)]
		off := r.Off + rnd.Int64N(r.Size/4096)*4096
		n := min(int64(1+rnd.IntN(12))*4096, r.Off+r.Size-off)
		v.do(command{Op: "remove", Off: off, Len: n})
		clear(f.want[off : off+n])
		if rnd.IntN(3) == 0 {
			v.do(command{Op: "fill", Off: off, Byte: 9})
			copy(f.want[off:off+4096], bytes.Repeat([]byte{9}, 4096))
		}
	}
	got := v.memory()
	copy(f.want[40960:45056], got[40960:45056]) // filled first, and perhaps removed since
	same(t, got, f.want)
	if s := stats(t, h); s.Removals != 40 {
		t.Errorf("%d removals of 40", s.Removals)
	}
}

// TestPagerDies: the server learns at once that nobody serves its VM any more.
func TestPagerDies(t *testing.T) {
	f := newFrozen(t, mib, 3)
	cfg := f.config()
	h := f.start(t, cfg)
	v := f.vmm(t, cfg)
	v.do(command{Op: "touch", Off: 0})
	if err := syscall.Kill(h.PID(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	v.tell(command{Op: "touch", Off: mib - 4096}) // hangs
	soon(t, h.Done(), "the pager's death is noticed")
	if err := h.Err(); spore.CodeOf(err) != spore.CodeUnreachable || !strings.Contains(err.Error(), "killed") || !strings.Contains(err.Error(), "s0123") {
		t.Errorf("after its death: %v", err)
	}
	if _, err := pager.Adopt(t.Context(), cfg); spore.CodeOf(err) != spore.CodeNotFound {
		t.Errorf("adopting a dead pager: %v", err)
	}
}

// TestServerDies: the pager serves on without a server, and the next one adopts it and learns of all that happened.
func TestServerDies(t *testing.T) {
	f := newFrozen(t, mib, 4)
	cfg := f.config()
	first := f.start(t, cfg)
	v := f.vmm(t, cfg)
	v.do(command{Op: "touch", Off: 0})
	if err := first.Release(); err != nil {
		t.Fatal(err)
	}
	same(t, v.memory(), f.want)
	h, err := pager.Adopt(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if h.PID() != first.PID() || !h.Serving() {
		t.Errorf("adopted process %d, serving %v; it was %d", h.PID(), h.Serving(), first.PID())
	}
	until(t, "faults are counted", func() bool { return stats(t, h).Faults > 0 })
	spec, err := pager.NewSpec(t.Context(), f.base, mib, nil, f.dir)
	if err != nil {
		t.Fatal(err)
	}
	defer spec.Close()
	if _, err := pager.Start(t.Context(), cfg, spec); spore.CodeOf(err) != spore.CodeConflict {
		t.Errorf("a second pager: %v", err)
	}
	v.end()
	soon(t, h.Done(), "the adopted pager ends with its VMM")
	if err := h.Err(); err != nil {
		t.Error(err)
	}
	stop(t, h)
	left, err := filepath.Glob(filepath.Join(f.dir, "*[.][sc]o*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
}

// TestDamage: a page that is not what was written reaches no guest; the server is told which file it is, even one that
// comes only later.
func TestDamage(t *testing.T) {
	f := newFrozen(t, mib, 5)
	f.patches = nil
	cfg := f.config()
	h := f.start(t, cfg)
	v := f.vmm(t, cfg)
	v.do(command{Op: "touch", Off: 0})
	if err := os.Truncate(f.base, mib/2); err != nil {
		t.Fatal(err)
	}
	v.tell(command{Op: "touch", Off: mib - 4096})
	soon(t, h.Done(), "damage is told")
	err := h.Err()
	if spore.CodeOf(err) != spore.CodeDamaged || !strings.Contains(err.Error(), f.base) || spore.AsError(err).Hint == "" {
		t.Errorf("damage: %v", err)
	}
	again, adoptErr := pager.Adopt(t.Context(), cfg)
	if adoptErr != nil {
		t.Fatal(adoptErr)
	}
	soon(t, again.Done(), "damage is told again")
	if again.Err() == nil || again.Err().Error() != err.Error() {
		t.Errorf("told again: %v", again.Err())
	}
	if err := again.Release(); err != nil {
		t.Error(err)
	}
	v.end()
}

// TestHostileVMM: a handshake that cannot be is refused by name, and never served.
func TestHostileVMM(t *testing.T) {
	for name, cfg := range map[string]vmmConfig{
		"no JSON":       {Text: "hello there"},
		"no regions":    {Text: "[]"},
		"no descriptor": {NoFD: true},
		"no userfault":  {WrongFD: true},
		"other memory":  {Text: `[{"base_host_virt_addr":1048576,"size":4096,"offset":0,"page_size":4096}]`},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFrozen(t, mib, 6)
			c := f.config()
			h := f.start(t, c)
			cfg.Socket, cfg.Regions = c.Socket, f.regions()
			v := startVMM(t, cfg)
			if name == "no JSON" {
				v.end() // text that never becomes JSON is waited for
			}
			soon(t, h.Done(), "refused")
			if err := h.Err(); spore.CodeOf(err) != spore.CodeInvalid || !strings.Contains(err.Error(), "handshake") {
				t.Errorf("refused with %v", err)
			}
		})
	}
}

// TestOtherUser: only the user that the VMM runs as is served, by a pager that is neither that user nor root.
func TestOtherUser(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can start processes of other users")
	}
	f := newFrozen(t, mib, 7)
	if err := os.Chmod(f.dir, 0o711); err != nil {
		t.Fatal(err)
	}
	cfg := f.config()
	cfg.UID, cfg.GID = 41234, 41234
	h := f.start(t, cfg)
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", h.PID()))
	if err != nil || !bytes.Contains(text, []byte("\nUid:\t65534\t65534\t65534\t65534\n")) || !bytes.Contains(text, []byte("\nCapEff:\t0000000000000000\n")) {
		t.Errorf("the pager's status: %s %v", text, err)
	}
	conn, err := net.Dial("unix", cfg.Socket) // root may, as to the file
	if err != nil {
		t.Fatal(err)
	}
	if n, err := conn.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("another user is answered %d bytes, %v", n, err)
	}
	conn.Close()
	v := startVMM(t, vmmConfig{Socket: cfg.Socket, Regions: f.regions(), UID: 41234})
	if err := h.Attached(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := v.do(command{Op: "touch", Off: mib - 4096}); got != fmt.Sprint(f.want[mib-4096]) {
		t.Errorf("read %s", got)
	}
}

// TestNobodyConnects: a pager whose VMM never comes does not stay.
func TestNobodyConnects(t *testing.T) {
	f := newFrozen(t, mib, 7)
	cfg := f.config()
	cfg.Connect = 1e6
	h := f.start(t, cfg)
	soon(t, h.Done(), "given up")
	if err := h.Err(); spore.CodeOf(err) != spore.CodeUnreachable {
		t.Errorf("given up with %v", err)
	}
}

// TestHotSet records what a guest touches, and keeps it.
func TestHotSet(t *testing.T) {
	f := newFrozen(t, 4*mib, 8)
	cfg := f.config()
	cfg.HotSet = filepath.Join(f.dir, "hot")
	cfg.Record = time.Hour
	h := f.start(t, cfg)
	v := f.vmm(t, cfg)
	for _, off := range []int64{3 * mib, 64 << 10, 2*mib + 4096, 0} {
		v.do(command{Op: "touch", Off: off})
	}
	hot, err := h.HotSet(t.Context())
	if err != nil || hot == nil || len(hot.Windows) == 0 || hot.Windows[0] != 3*mib || hot.Size != 4*mib {
		t.Fatalf("recorded %+v %v", hot, err)
	}
	v.end()
	soon(t, h.Done(), "the end")
	stop(t, h)
	cfg.Record = time.Millisecond
	f.start(t, cfg)
	v = f.vmm(t, cfg)
	v.do(command{Op: "touch", Off: mib})
	until(t, "the hot set is kept", func() bool {
		kept, err := pager.LoadHotSet(cfg.HotSet)
		if err != nil && spore.CodeOf(err) != spore.CodeNotFound {
			t.Fatal(err)
		}
		return err == nil && kept.Windows[0] == mib
	})
}

// TestPrefetch brings a hot set ahead of the faults, once the first page was touched.
func TestPrefetch(t *testing.T) {
	f := newFrozen(t, 4*mib, 8)
	cfg := f.config()
	cfg.HotSet = filepath.Join(f.dir, "hot")
	windows := []int64{3 * mib, 3*mib + 32<<10, 64 << 10, 2 * mib, mib + mib/2 - 32<<10, mib + mib/2}
	if err := (&pager.HotSet{Size: 4 * mib, Windows: windows}).Save(cfg.HotSet); err != nil {
		t.Fatal(err)
	}
	h := f.start(t, cfg)
	v := f.vmm(t, cfg)
	if s := stats(t, h); s.Prefetched != 0 {
		t.Errorf("prefetched before anything was touched: %+v", s)
	}
	v.do(command{Op: "remove", Off: 2 * mib, Len: 8192}) // never brought back, though it is hot
	clear(f.want[2*mib : 2*mib+8192])
	v.do(command{Op: "touch", Off: 3*mib + mib/2})
	until(t, "all is there", func() bool { return stats(t, h).Prefetched == int64(len(windows)*8-2) })
	until(t, "the fault is counted", func() bool { return stats(t, h).Faults == 1 })
	for _, off := range windows {
		if off != 2*mib {
			v.do(command{Op: "touch", Off: off})
		}
	}
	if after := stats(t, h).Faults; after != 1 {
		t.Errorf("%d faults for pages that are there", after-1)
	}
	same(t, v.memory(), f.want)
}

// TestNoHotSet: a hot set that is damaged, or another memory's, is said to be, and the guest's memory is right without.
func TestNoHotSet(t *testing.T) {
	for name, make := range map[string]func(path string) error{
		"damaged": func(path string) error { return os.WriteFile(path, []byte("rubbish"), 0o600) },
		"another": func(path string) error { return (&pager.HotSet{Size: 8 * mib, Windows: []int64{0}}).Save(path) },
	} {
		t.Run(name, func(t *testing.T) {
			f := newFrozen(t, mib, 8)
			cfg := f.config()
			cfg.HotSet = filepath.Join(f.dir, "hot")
			if err := make(cfg.HotSet); err != nil {
				t.Fatal(err)
			}
			h := f.start(t, cfg)
			v := f.vmm(t, cfg)
			same(t, v.memory(), f.want)
			if s := stats(t, h); s.HotSetError == "" || s.HotSet != 0 || s.Prefetched != 0 {
				t.Errorf("%+v", s)
			}
		})
	}
}

// TestHugePages: what is said to be huge pages comes and goes as a whole.
func TestHugePages(t *testing.T) {
	f := newFrozen(t, 8*mib, 12)
	clear(f.want[4*mib : 6*mib])
	f.patches = append(f.patches, struct {
		off  int64
		data []byte
	}{4 * mib, make([]byte, 2*mib)})
	cfg := f.config()
	cfg.HotSet = filepath.Join(f.dir, "hot")
	if err := (&pager.HotSet{Size: 8 * mib, Windows: []int64{6*mib + 32<<10, 6*mib + 64<<10}}).Save(cfg.HotSet); err != nil {
		t.Fatal(err)
	}
	h := f.start(t, cfg)
	v := startVMM(t, vmmConfig{Socket: cfg.Socket, Regions: []vmmRegion{{Size: 2 * mib, Off: 6 * mib, Page: 2 * mib}, {Size: 6 * mib, Page: 2 * mib}}})
	v.do(command{Op: "touch", Off: 5000})
	v.do(command{Op: "remove", Off: 2 * mib, Len: 2 * mib})
	clear(f.want[2*mib : 4*mib])
	same(t, v.memory(), f.want)
	until(t, "all pages are counted once", func() bool {
		s := stats(t, h)
		return s.Copied == 1024 && s.Zeroed == 1024
	})
}

// TestLastDescriptor: after damage the pager keeps the descriptor, even if it alone has it. Without, the kernel would give
// the guest zeros.
func TestLastDescriptor(t *testing.T) {
	f := newFrozen(t, mib, 5)
	f.patches = nil
	cfg := f.config()
	h := f.start(t, cfg)
	v := startVMM(t, vmmConfig{Socket: cfg.Socket, Regions: f.regions(), Forget: true})
	if err := os.Truncate(f.base, 0); err != nil {
		t.Fatal(err)
	}
	v.tell(command{Op: "touch", Off: 0})
	soon(t, h.Done(), "damage is told")
	if _, err := h.Stats(t.Context()); err != nil { // it lives on
		t.Error(err)
	}
	v.end()
	for v.out.Scan() {
		t.Errorf("the guest read %s", v.out.Text())
	}
}

// TestStartRefusals: what cannot be served is said at the start, and nothing stays.
func TestStartRefusals(t *testing.T) {
	f := newFrozen(t, mib, 9)
	if _, err := pager.NewSpec(t.Context(), f.base+"-not", mib, nil, f.dir); spore.CodeOf(err) != spore.CodeNotFound {
		t.Errorf("no base: %v", err)
	}
	bad := patches{{off: mib, data: make([]byte, 4096)}}
	if _, err := pager.NewSpec(t.Context(), f.base, mib, bad, f.dir); err == nil {
		t.Error("a patch outside of memory is taken")
	}
	short, err := pager.NewSpec(t.Context(), f.base, 2*mib, nil, f.dir)
	if err != nil {
		t.Fatal(err)
	}
	defer short.Close()
	if _, err := pager.Start(t.Context(), f.config(), short); spore.CodeOf(err) != spore.CodeDamaged || !strings.Contains(err.Error(), f.base) {
		t.Errorf("a short base: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := pager.Start(ctx, f.config(), short); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if left, err := filepath.Glob(filepath.Join(f.dir, "*[.][sc]o*")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
}

var _ vmm.Patches = patches{}
