package frozen

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/vmm"
)

const guestFile = "SPORE_TEST_GUEST_FILE"

// TestGuestProcess is not a test but the other side of processVM: a process that maps a base file privately, as a
// hypervisor does, and writes to pages at random when told to.
func TestGuestProcess(t *testing.T) {
	path := os.Getenv(guestFile)
	if path == "" {
		t.Skip("runs in a process of its own")
	}
	f := must[*os.File](t)(os.Open(path))
	size := int(must[os.FileInfo](t)(f.Stat()).Size())
	ram := must[[]byte](t)(unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_NORESERVE))
	fmt.Printf("guest %d\n", addressOf(ram))
	in := bufio.NewScanner(os.Stdin)
	rng := rand.NewChaCha8([32]byte{1})
	for in.Scan() {
		pages, err := strconv.Atoi(in.Text())
		if err != nil {
			t.Fatal(err)
		}
		for pages > 0 { // in runs, as guests do
			at := int(rng.Uint64() % uint64(size/pageSize))
			for n := 1 + int(rng.Uint64()%16); n > 0 && pages > 0 && at < size/pageSize; n-- {
				page := ram[at*pageSize:][:pageSize]
				if _, err := rng.Read(page[:pageSize/2]); err != nil {
					t.Fatal(err)
				}
				page[pageSize-1]++
				at++
				pages--
			}
		}
		fmt.Println("done")
	}
	os.Exit(0)
}

// processVM shows the RAM of such a process as engines do: through /proc.
type processVM struct {
	fakeVM
	cmd     *exec.Cmd
	in      io.WriteCloser
	out     *bufio.Reader
	address int64
	size    int64
	mem     *os.File
	pagemap *os.File
}

func startGuest(t testing.TB, path string) *processVM {
	t.Helper()
	vm := &processVM{cmd: exec.Command(os.Args[0], "-test.run=^TestGuestProcess$")}
	vm.state = vmm.StateRunning
	vm.size = must[os.FileInfo](t)(os.Stat(path)).Size()
	vm.cmd.Env = append(os.Environ(), guestFile+"="+path)
	vm.in = must[io.WriteCloser](t)(vm.cmd.StdinPipe())
	vm.out = bufio.NewReader(must[io.ReadCloser](t)(vm.cmd.StdoutPipe()))
	if err := vm.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		vm.cmd.Process.Signal(syscall.SIGCONT)
		vm.in.Close()
		vm.cmd.Wait()
	})
	line := must[string](t)(vm.out.ReadString('\n'))
	vm.address = must[int64](t)(strconv.ParseInt(strings.Fields(line)[1], 10, 64))
	vm.mem = must[*os.File](t)(os.Open(fmt.Sprintf("/proc/%d/mem", vm.cmd.Process.Pid)))
	vm.pagemap = must[*os.File](t)(os.Open(fmt.Sprintf("/proc/%d/pagemap", vm.cmd.Process.Pid)))
	t.Cleanup(func() { vm.mem.Close(); vm.pagemap.Close() })
	return vm
}

func (vm *processVM) write(t testing.TB, mib int) {
	t.Helper()
	fmt.Fprintln(vm.in, mib<<20/pageSize)
	must[string](t)(vm.out.ReadString('\n'))
}

func (vm *processVM) Pause(ctx context.Context) error {
	return errors.Join(vm.cmd.Process.Signal(syscall.SIGSTOP), vm.fakeVM.Pause(ctx))
}

func (vm *processVM) Resume(ctx context.Context) error {
	return errors.Join(vm.cmd.Process.Signal(syscall.SIGCONT), vm.fakeVM.Resume(ctx))
}

func (vm *processVM) Memory() (vmm.Memory, error) { return processMemory{vm}, nil }

type processMemory struct{ vm *processVM }

func (m processMemory) Size() int64 { return m.vm.size }

func (m processMemory) ReadAt(p []byte, off int64) (int, error) {
	// Not /proc/PID/mem, which copies each page twice.
	local := []unix.Iovec{{Base: &p[0], Len: uint64(len(p))}}
	remote := []unix.RemoteIovec{{Base: uintptr(m.vm.address + off), Len: len(p)}}
	return unix.ProcessVMReadv(m.vm.cmd.Process.Pid, local, remote, 0)
}

func (m processMemory) Private(context.Context) ([]vmm.Range, error) {
	const present, swapped, file = 1 << 63, 1 << 62, 1 << 61
	var out []vmm.Range
	buf := make([]byte, 1<<20)
	for off := int64(0); off < m.vm.size; {
		n, err := m.vm.pagemap.ReadAt(buf[:min(int64(len(buf)), (m.vm.size-off)/pageSize*8)], (m.vm.address+off)/pageSize*8)
		if err != nil {
			return nil, err
		}
		for i := 0; i < n; i += 8 {
			e := binary.LittleEndian.Uint64(buf[i:])
			if e&swapped != 0 || e&present != 0 && e&file == 0 {
				out = appendRange(out, vmm.Range{Offset: off, Length: pageSize})
			}
			off += pageSize
		}
	}
	return out, nil
}

func (processMemory) Track(context.Context) error {
	return spore.Errorf(spore.CodeUnsupported, "no soft-dirty")
}
func (processMemory) Written(context.Context) ([]vmm.Range, error) { panic("not tracked") }

// bigTemplate freezes RAM of that many MiB, a sixteenth of it in use.
func bigTemplate(t testing.TB, s *Store, mib int64) *Manifest {
	t.Helper()
	d := must[*Draft](t)(s.Begin(t.Context(), Spec{ID: "tpl-big", Kind: KindTemplate, Shape: shape}))
	defer d.Discard()
	f := must[*os.File](t)(os.Create(d.BaseMemoryPath()))
	defer f.Close()
	if err := f.Truncate(mib << 20); err != nil {
		t.Fatal(err)
	}
	chunk := make([]byte, 1<<20)
	for i := int64(0); i < mib; i += 16 {
		for p := 0; p < len(chunk); p += pageSize {
			copy(chunk[p:], randomHex(64))
		}
		if _, err := f.WriteAt(chunk, i<<20); err != nil {
			t.Fatal(err)
		}
	}
	vm := &fakeVM{state: vmm.StateRunning, blob: make([]byte, 80<<10), booted: true}
	disk := filepath.Join(t.TempDir(), "disk")
	writeDisk(t, disk, 1<<18, map[int64]byte{0: 1})
	must[Timings](t)(d.CaptureBoot(t.Context(), vm, disk))
	return must[*Manifest](t)(d.Commit(t.Context()))
}

// TestCaptureOfProcess freezes and reads back the RAM of another process.
func TestCaptureOfProcess(t *testing.T) {
	s := openStore(t, Options{})
	parent := bigTemplate(t, s, 64)
	vm, disk := thawProcess(t, s, parent)
	vm.write(t, 3)
	d := must[*Draft](t)(s.Begin(t.Context(), Spec{ID: "snap-1", Kind: KindSnapshot, Shape: shape, Parent: parent}))
	defer d.Discard()
	must[Timings](t)(d.CaptureLive(t.Context(), vm, disk, Resume))
	must[*Manifest](t)(d.Commit(t.Context()))
	img := must[*Image](t)(s.OpenImage(t.Context(), "snap-1"))
	defer img.Close()
	want, got := make([]byte, 64<<20), make([]byte, 64<<20)
	if err := errors.Join(readFull(processMemory{vm}, want, 0), readFull(img.Memory(), got, 0)); err != nil {
		t.Fatal(err)
	}
	if i := firstDifference(want, got); i >= 0 {
		t.Errorf("differs at page %d", i/pageSize)
	}
}

func thawProcess(t testing.TB, s *Store, m *Manifest) (*processVM, string) {
	t.Helper()
	img := must[*Image](t)(s.OpenImage(t.Context(), m.ID))
	defer img.Close()
	disk := filepath.Join(s.dir, "..", "disk")
	if err := img.CloneDisk(t.Context(), disk); err != nil {
		t.Fatal(err)
	}
	vm := startGuest(t, img.BaseMemory)
	vm.blob = make([]byte, 80<<10)
	return vm, disk
}

// BenchmarkCaptureLive captures a process that maps RAM of 512 MiB and 2 GiB and has written some of it.
func BenchmarkCaptureLive(b *testing.B) {
	for _, mib := range []int64{512, 2048} {
		for _, dirty := range []int{0, 4, 24, 128} {
			b.Run(fmt.Sprintf("ram=%dMiB/dirty=%dMiB", mib, dirty), func(b *testing.B) {
				s := openStore(b, Options{})
				parent := bigTemplate(b, s, mib)
				vm, disk := thawProcess(b, s, parent)
				vm.write(b, dirty)
				var sum Timings
				n := 0
				for b.Loop() {
					id := fmt.Sprintf("snap-%d", n)
					d := must[*Draft](b)(s.Begin(b.Context(), Spec{ID: id, Kind: KindSnapshot, Shape: shape, Parent: parent}))
					must[Timings](b)(d.CaptureLive(b.Context(), vm, disk, Resume))
					must[*Manifest](b)(d.Commit(b.Context()))
					t := d.Timings()
					sum.Paused += t.Paused
					sum.Scan += t.Scan
					sum.Copy += t.Copy
					sum.State += t.State
					sum.Settle += t.Settle
					sum.StoredBytes += t.StoredBytes
					n++
				}
				ms := func(d int64) float64 { return float64(d) / 1e6 / float64(n) }
				b.ReportMetric(ms(int64(sum.Paused)), "paused-ms")
				b.ReportMetric(ms(int64(sum.Scan)), "scan-ms")
				b.ReportMetric(ms(int64(sum.Copy)), "copy-ms")
				b.ReportMetric(ms(int64(sum.State)), "state-ms")
				b.ReportMetric(ms(int64(sum.Settle)), "settle-ms")
				b.ReportMetric(float64(sum.StoredBytes)/float64(n)/(1<<20), "stored-MiB")
			})
		}
	}
}

func addressOf(b []byte) uintptr { return uintptr(unsafe.Pointer(&b[0])) }

// BenchmarkOpenImage opens an image of 2 GiB with that much in its layer and reads all patches, as a thaw does.
func BenchmarkOpenImage(b *testing.B) {
	for _, dirty := range []int{0, 24} {
		b.Run(fmt.Sprintf("dirty=%dMiB", dirty), func(b *testing.B) {
			s := openStore(b, Options{})
			parent := bigTemplate(b, s, 2048)
			vm, disk := thawProcess(b, s, parent)
			vm.write(b, dirty)
			d := must[*Draft](b)(s.Begin(b.Context(), Spec{ID: "snap-1", Kind: KindSnapshot, Shape: shape, Parent: parent}))
			must[Timings](b)(d.CaptureLive(b.Context(), vm, disk, Resume))
			must[*Manifest](b)(d.Commit(b.Context()))
			for b.Loop() {
				img := must[*Image](b)(s.OpenImage(b.Context(), "snap-1"))
				if err := img.VM.Patches.Each(b.Context(), func(int64, []byte) error { return nil }); err != nil {
					b.Fatal(err)
				}
				if err := img.Close(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkDiskWindow captures a VM with 256 MiB on its disk that has written to it since the copy began, or not.
func BenchmarkDiskWindow(b *testing.B) {
	for _, writes := range []bool{false, true} {
		b.Run(fmt.Sprintf("writes=%v", writes), func(b *testing.B) {
			s := openStore(b, Options{})
			template(b, s, "tpl-1", 64)
			r := thaw(b, s, "tpl-1")
			f := must[*os.File](b)(os.OpenFile(r.disk, os.O_RDWR, 0))
			defer f.Close()
			grown := must[*Draft](b)(s.Begin(b.Context(), Spec{ID: "tpl-2", Kind: KindTemplate, Shape: shape}))
			boot := bootFake(b, grown.BaseMemoryPath(), 64)
			buf := make([]byte, 1<<20)
			for off := range int64(256) {
				copy(buf, randomHex(pageSize))
				if _, err := f.WriteAt(buf, off<<20); err != nil {
					b.Fatal(err)
				}
			}
			must[Timings](b)(grown.CaptureBoot(b.Context(), boot, r.disk))
			r.parent = must[*Manifest](b)(grown.Commit(b.Context()))
			if writes {
				n := int64(0)
				r.vm.onPause = func() error {
					n++
					_, err := f.WriteAt([]byte(randomHex(pageSize/2)), n%256<<20)
					return err
				}
			}
			var sum Timings
			n := 0
			for b.Loop() {
				d := must[*Draft](b)(s.Begin(b.Context(), Spec{ID: fmt.Sprintf("snap-%d", n), Kind: KindSnapshot, Shape: shape, Parent: r.parent}))
				must[Timings](b)(d.CaptureLive(b.Context(), r.vm, r.disk, Resume))
				must[*Manifest](b)(d.Commit(b.Context()))
				t := d.Timings()
				sum.Paused += t.Paused
				sum.Precopy += t.Precopy
				sum.Disk += t.Disk
				sum.Settle += t.Settle
				n++
			}
			for name, d := range map[string]int64{"paused-ms": int64(sum.Paused), "precopy-ms": int64(sum.Precopy), "disk-ms": int64(sum.Disk), "settle-ms": int64(sum.Settle)} {
				b.ReportMetric(float64(d)/1e6/float64(n), name)
			}
		})
	}
}
