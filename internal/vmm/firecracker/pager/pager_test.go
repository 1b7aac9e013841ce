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

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/vmm/firecracker/pager"
)

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
	spec, err := pager.NewSpec(t.Context(), f.base, int64(len(f.want)), f.patches, f.dir)
	if err != nil {
		t.Fatal(err)
	}
	defer spec.Close()
	h, err := pager.Start(t.Context(), cfg, spec) // which may be the one to learn of it
	if err == nil {
		defer stop(t, h)
		soon(t, h.Done(), "given up")
		err = h.Err()
	}
	if spore.CodeOf(err) != spore.CodeUnreachable {
		t.Errorf("given up with %v", err)
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
