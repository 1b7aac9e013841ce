package pager_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/internal/vmm/firecracker/pager"
)

// The VMM of these tests is this program in a process of its own. It does what a VMM does when it loads a snapshot, and
// then touches its guest's memory as it is told.

type vmmConfig struct {
	Socket  string
	Regions []vmmRegion
	Text    string // instead of the handshake; "" is a right one
	NoFD    bool
	WrongFD bool
	UID     int  // become that user before connecting; 0 is to stay
	Forget  bool // keep no descriptor, so that only the pager has it
}

type vmmRegion struct {
	Size, Off int64
	Page      int64
	Addr      uint64 `json:",omitempty"`
}

type command struct {
	Op       string
	Off, Len int64
	Byte     byte
	Path     string
	Threads  int
}

func vmmMain(config string) int {
	debug.SetGCPercent(-1) // a collection would wait for threads that wait for pages
	if err := vmmRun(config); err != nil {
		fmt.Println("error:", err)
		return 1
	}
	return 0
}

type fakeVMM struct {
	cfg vmmConfig
	mem [][]byte // by region
}

func vmmRun(config string) error {
	var v fakeVMM
	if err := json.Unmarshal([]byte(config), &v.cfg); err != nil {
		return err
	}
	fd, err := pager.NewUffd()
	if err != nil {
		return err
	}
	for i, r := range v.cfg.Regions {
		mem, err := unix.Mmap(-1, 0, int(r.Size+r.Page), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
		if err != nil {
			return err
		}
		// Huge pages are only said to be; what matters is that they come as a whole.
		mem = mem[-uintptr(unsafe.Pointer(&mem[0]))%uintptr(r.Page):][:r.Size]
		if err := pager.Register(fd, mem); err != nil {
			return err
		}
		v.cfg.Regions[i].Addr = uint64(uintptr(unsafe.Pointer(&mem[0])))
		v.mem = append(v.mem, mem)
	}
	if err := v.connect(fd); err != nil {
		return err
	}
	fmt.Println("ok")
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		var c command
		if err := json.Unmarshal(in.Bytes(), &c); err != nil {
			return err
		}
		answer, err := v.do(c)
		if err != nil {
			return err
		}
		fmt.Println("ok", answer)
	}
	return in.Err()
}

func (v *fakeVMM) connect(fd int) error {
	var said []map[string]any
	for _, r := range v.cfg.Regions {
		said = append(said, map[string]any{
			"base_host_virt_addr": r.Addr, "size": r.Size, "offset": r.Off, "page_size": r.Page, "page_size_kib": r.Page,
		})
	}
	text, err := json.Marshal(said)
	if err != nil {
		return err
	}
	if v.cfg.Text != "" {
		text = []byte(v.cfg.Text)
	}
	if v.cfg.UID != 0 {
		if err := syscall.Setresuid(v.cfg.UID, v.cfg.UID, v.cfg.UID); err != nil {
			return err
		}
	}
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: v.cfg.Socket, Net: "unix"})
	if err != nil {
		return err
	}
	if v.cfg.WrongFD {
		fd = 0
	}
	rights := unix.UnixRights(fd)
	if v.cfg.NoFD {
		rights = nil
	}
	_, _, err = conn.WriteMsgUnix(text, rights, nil)
	if v.cfg.Forget {
		return unix.Close(fd)
	}
	return err // the connection is kept, as a VMM keeps it
}

func (v *fakeVMM) at(off int64) []byte {
	for i, r := range v.cfg.Regions {
		if off >= r.Off && off < r.Off+r.Size {
			return v.mem[i][off-r.Off:]
		}
	}
	panic("outside of memory")
}

func (v *fakeVMM) do(c command) (string, error) {
	switch c.Op {
	case "touch":
		return fmt.Sprint(v.at(c.Off)[0]), nil
	case "fill":
		b := v.at(c.Off)[:4096]
		for i := range b {
			b[i] = c.Byte
		}
		return "", nil
	case "remove":
		return "", unix.Madvise(v.at(c.Off)[:c.Len], unix.MADV_DONTNEED)
	case "dump": // the kernel touches the pages, as KVM does
		return "", v.write(c.Path, v.mem)
	case "race": // threads read all pages in many orders, into a copy
		return "", v.race(c)
	}
	return "", fmt.Errorf("no command %q", c.Op)
}

func (v *fakeVMM) race(c command) error {
	var size int64
	for _, r := range v.cfg.Regions {
		size += r.Size
	}
	copies := make([][]byte, c.Threads)
	var wg sync.WaitGroup
	for i := range copies {
		copies[i] = make([]byte, size)
		rnd := rand.New(rand.NewPCG(uint64(c.Off), uint64(i)))
		wg.Go(func() {
			for _, p := range rnd.Perm(int(size / 4096)) {
				off := int64(p) * 4096
				copy(copies[i][off:off+4096], v.at(off))
			}
		})
	}
	wg.Wait()
	for _, b := range copies[1:] {
		if !bytes.Equal(b, copies[0]) {
			return fmt.Errorf("threads read different bytes")
		}
	}
	return v.write(c.Path, [][]byte{copies[0]})
}

func (v *fakeVMM) write(path string, parts [][]byte) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	for i, b := range parts {
		off := int64(0)
		if len(parts) > 1 {
			off = v.cfg.Regions[i].Off
		}
		if _, err := f.WriteAt(b, off); err != nil {
			return err
		}
	}
	return nil
}

// vmmProcess is a VMM as a test sees it.
type vmmProcess struct {
	t   testing.TB
	cmd *exec.Cmd
	in  *json.Encoder
	out *bufio.Scanner
	end func()
}

// startVMM starts a VMM and waits until it has sent its handshake.
func startVMM(t testing.TB, cfg vmmConfig) *vmmProcess {
	t.Helper()
	text, err := json.Marshal(cfg)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe", "vmm", string(text))
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	v := &vmmProcess{t: t, cmd: cmd, in: json.NewEncoder(in), out: bufio.NewScanner(out)}
	v.end = sync.OnceFunc(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	t.Cleanup(v.end)
	v.answer()
	return v
}

func (v *vmmProcess) tell(c command) {
	v.t.Helper()
	if err := v.in.Encode(c); err != nil {
		v.t.Fatal(err)
	}
}

func (v *vmmProcess) answer() string {
	v.t.Helper()
	if !v.out.Scan() {
		v.t.Fatalf("the VMM ended: %v", v.out.Err())
	}
	line := v.out.Text()
	if !strings.HasPrefix(line, "ok") {
		v.t.Fatalf("VMM: %s", line)
	}
	return strings.TrimPrefix(strings.TrimPrefix(line, "ok"), " ")
}

func (v *vmmProcess) do(c command) string {
	v.t.Helper()
	v.tell(c)
	return v.answer()
}

// memory is all of the guest's RAM.
func (v *vmmProcess) memory() []byte {
	v.t.Helper()
	path := filepath.Join(v.t.TempDir(), "dump")
	v.do(command{Op: "dump", Path: path})
	b, err := os.ReadFile(path)
	if err != nil {
		v.t.Fatal(err)
	}
	return b
}

// soon waits for something that must come, and does not rely on how fast.
func soon[T any](t testing.TB, ch <-chan T, what string) {
	t.Helper()
	select {
	case <-ch:
	case <-time.After(time.Minute):
		t.Fatalf("%s: still not after a minute", what)
	}
}
