package frozen

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/vmm"
)

// fakeVM is a VM whose RAM is a slice of this process. Tests set the function fields to make it misbehave.
type fakeVM struct {
	mu       sync.Mutex
	state    vmm.State
	blob     []byte // device state
	ram      []byte
	base     []byte // of a thawed VM: what its RAM shows where it has written nothing
	booted   bool   // no private pages: RAM is the file
	file     string
	private  map[int64]bool // pages, by number
	written  map[int64]bool
	tracks   bool
	tracking bool

	onPause func() error
	onSave  func() error
	onRead  func() error
	resumes int
	alive   bool // a booted VM that nobody killed
	vmm.VM       // what is not needed here panics
	noScan  bool
}

// bootFake boots a VM on a RAM file at path, as an engine does.
func bootFake(t testing.TB, path string, pages int) *fakeVM {
	t.Helper()
	vm := &fakeVM{state: vmm.StateRunning, blob: []byte("state of boot"), ram: make([]byte, pages*pageSize), booted: true, file: path}
	vm.flush(t)
	return vm
}

func (vm *fakeVM) flush(t testing.TB) {
	t.Helper()
	f, err := os.OpenFile(vm.file, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(vm.ram, 0); err != nil {
		t.Fatal(err)
	}
}

// thawFake thaws an image as an engine does.
func thawFake(t testing.TB, img *Image) *fakeVM {
	t.Helper()
	ram, err := os.ReadFile(img.BaseMemory)
	if err != nil {
		t.Fatal(err)
	}
	vm := &fakeVM{state: vmm.StateRunning, ram: ram, base: bytes.Clone(ram), private: map[int64]bool{}, tracks: true}
	if vm.blob, err = io.ReadAll(img.VM.State); err != nil {
		t.Fatal(err)
	}
	if img.VM.Patches != nil {
		last := int64(0)
		err := img.VM.Patches.Each(context.Background(), func(off int64, data []byte) error {
			if off%pageSize != 0 || len(data)%pageSize != 0 || off < last {
				t.Errorf("patch at %d of %d bytes after %d", off, len(data), last)
			}
			last = off
			vm.put(off, data)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return vm
}

// put writes whole pages, as the guest would.
func (vm *fakeVM) put(off int64, data []byte) {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	copy(vm.ram[off:], data)
	for p := off / pageSize; p*pageSize < off+int64(len(data)); p++ {
		if vm.private != nil {
			vm.private[p] = true
		}
		if vm.tracking {
			vm.written[p] = true
		}
	}
}

func (vm *fakeVM) page(n int64, fill byte) {
	vm.put(n*pageSize, bytes.Repeat([]byte{fill}, pageSize))
}

// giveBack is what a balloon does: the page is the base's again.
func (vm *fakeVM) giveBack(n int64) {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	copy(vm.ram[n*pageSize:(n+1)*pageSize], vm.base[n*pageSize:])
	delete(vm.private, n)
}

func (vm *fakeVM) State() vmm.State {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	return vm.state
}

func (vm *fakeVM) Pause(context.Context) error {
	if vm.onPause != nil {
		if err := vm.onPause(); err != nil {
			return err
		}
	}
	vm.mu.Lock()
	defer vm.mu.Unlock()
	vm.state = vmm.StatePaused
	return nil
}

func (vm *fakeVM) Resume(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	vm.mu.Lock()
	defer vm.mu.Unlock()
	vm.state = vmm.StateRunning
	vm.resumes++
	return nil
}

func (vm *fakeVM) SaveState(_ context.Context, out *os.File) error {
	if vm.State() != vmm.StatePaused {
		return errors.New("not paused")
	}
	if vm.onSave != nil {
		if err := vm.onSave(); err != nil {
			return err
		}
	}
	_, err := out.Write(vm.blob)
	return err
}

func (vm *fakeVM) Done() <-chan struct{} {
	done := make(chan struct{})
	if !vm.alive {
		close(done)
	}
	return done
}

func (vm *fakeVM) Memory() (vmm.Memory, error) { return fakeMemory{vm}, nil }

func (vm *fakeVM) DialPort(context.Context, string) (net.Conn, error) {
	return nil, errors.New("no ports")
}

type fakeMemory struct{ vm *fakeVM }

func (m fakeMemory) Size() int64 { return int64(len(m.vm.ram)) }

func (m fakeMemory) ReadAt(p []byte, off int64) (int, error) {
	if m.vm.onRead != nil {
		if err := m.vm.onRead(); err != nil {
			return 0, err
		}
	}
	m.vm.mu.Lock()
	defer m.vm.mu.Unlock()
	return copy(p, m.vm.ram[off:]), nil
}

func (m fakeMemory) Private(context.Context) ([]vmm.Range, error) {
	if m.vm.booted || m.vm.noScan {
		return nil, spore.Errorf(spore.CodeUnsupported, "shared")
	}
	return m.list(func() map[int64]bool { return m.vm.private }), nil
}

func (m fakeMemory) Track(context.Context) error {
	if !m.vm.tracks {
		return spore.Errorf(spore.CodeUnsupported, "no soft-dirty")
	}
	m.vm.mu.Lock()
	defer m.vm.mu.Unlock()
	m.vm.tracking, m.vm.written = true, map[int64]bool{}
	return nil
}

func (m fakeMemory) Written(context.Context) ([]vmm.Range, error) {
	return m.list(func() map[int64]bool { return m.vm.written }), nil
}

func (m fakeMemory) list(set func() map[int64]bool) []vmm.Range {
	m.vm.mu.Lock()
	defer m.vm.mu.Unlock()
	var out []vmm.Range
	for p := int64(0); p*pageSize < m.Size(); p++ {
		if set()[p] {
			out = appendRange(out, vmm.Range{Offset: p * pageSize, Length: pageSize})
		}
	}
	return out
}

// tempDir is t.TempDir, in memory if there is such a place: for tests that make thousands of pieces, where syncing would
// take minutes and proves nothing.
func tempDir(t testing.TB) string {
	t.Helper()
	if st, err := os.Stat("/dev/shm"); err != nil || !st.IsDir() {
		return t.TempDir()
	}
	dir := must[string](t)(os.MkdirTemp("/dev/shm", "frozen-test-"))
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func openStore(t testing.TB, opts Options) *Store {
	t.Helper()
	return openStoreIn(t, filepath.Join(t.TempDir(), "frozen"), opts)
}

func openStoreIn(t testing.TB, dir string, opts Options) *Store {
	t.Helper()
	s, err := Open(dir, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func must[T any](t testing.TB) func(v T, err error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

var shape = Shape{VCPUs: 1, MemoryMiB: 1, Kernel: "krn-1", Artifact: "rfs-1", Engine: Engine{Engine: "fake"}}

// writeDisk makes a sparse disk image with a few blocks of fill.
func writeDisk(t testing.TB, path string, blocks int, fill map[int64]byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(int64(blocks) * pageSize); err != nil {
		t.Fatal(err)
	}
	for b, c := range fill {
		if _, err := f.WriteAt(bytes.Repeat([]byte{c}, pageSize), b*pageSize); err != nil {
			t.Fatal(err)
		}
	}
}

// template freezes a booted VM whose page n, for a few n, is filled with n.
func template(t testing.TB, s *Store, id string, pages int) *Manifest {
	t.Helper()
	d := must[*Draft](t)(s.Begin(t.Context(), Spec{ID: id, Kind: KindTemplate, Shape: shape}))
	defer d.Discard()
	vm := bootFake(t, d.BaseMemoryPath(), pages)
	for _, p := range []int64{1, 2, 5, 20} {
		vm.page(p, byte(p))
	}
	vm.flush(t)
	disk := filepath.Join(t.TempDir(), "disk")
	writeDisk(t, disk, 256, map[int64]byte{0: 1, 7: 7, 100: 100})
	must[Timings](t)(d.CaptureBoot(t.Context(), vm, disk))
	return must[*Manifest](t)(d.Commit(t.Context()))
}

// running is a thawed fake and its disk.
type running struct {
	vm     *fakeVM
	disk   string
	parent *Manifest
}

func thaw(t testing.TB, s *Store, id string) *running {
	t.Helper()
	img := must[*Image](t)(s.OpenImage(t.Context(), id))
	defer img.Close()
	disk := filepath.Join(s.dir, "..", "disk-"+randomHex(4)) // on the file system of the store, as sandboxes' disks are
	if err := img.CloneDisk(t.Context(), disk); err != nil {
		t.Fatal(err)
	}
	return &running{vm: thawFake(t, img), disk: disk, parent: img.Manifest}
}

func (r *running) snapshot(t testing.TB, s *Store, id string) *Manifest {
	t.Helper()
	d := must[*Draft](t)(s.Begin(t.Context(), Spec{ID: id, Kind: KindSnapshot, Shape: shape, Parent: r.parent}))
	defer d.Discard()
	must[Timings](t)(d.CaptureLive(t.Context(), r.vm, r.disk, Resume))
	return must[*Manifest](t)(d.Commit(t.Context()))
}

// expect compares a frozen VM with a running one, memory and disk.
func (r *running) expect(t testing.TB, s *Store, id string) {
	t.Helper()
	got := thaw(t, s, id)
	if i := firstDifference(got.vm.ram, r.vm.ram); i >= 0 {
		t.Fatalf("%s: memory differs at page %d", id, i/pageSize)
	}
	a, b := must[[]byte](t)(os.ReadFile(got.disk)), must[[]byte](t)(os.ReadFile(r.disk))
	if i := firstDifference(a, b); i >= 0 {
		t.Fatalf("%s: disk differs at block %d", id, i/pageSize)
	}
	os.Remove(got.disk)
}

func firstDifference(a, b []byte) int {
	if bytes.Equal(a, b) {
		return -1
	}
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	return min(len(a), len(b))
}

func wantCode(t testing.TB, err error, code spore.Code) {
	t.Helper()
	if spore.CodeOf(err) != code {
		t.Fatalf("got error %v (%s), want %s", err, spore.CodeOf(err), code)
	}
}

func rangeOf(page, pages int64) vmm.Range {
	return vmm.Range{Offset: page * pageSize, Length: pages * pageSize}
}
