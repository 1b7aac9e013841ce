// Package procmem sees the guest RAM of a hypervisor from outside its process: which pages the process holds for
// itself, which it wrote since a mark, and what is in them. It knows no hypervisor; all it needs is a process that maps
// a RAM file.
package procmem

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	spore "github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/vmm"
)

// Memory is the RAM of one process. It implements vmm.Memory, io.WriterAt and io.Closer, and is safe for use by many
// goroutines. Its methods fail with spore.CodeConflict once the process is gone.
type Memory struct {
	pid     int
	pidfd   int
	size    int64
	private bool
	runs    []segment // ascending by off, seamless, covering [0, size)
	pagemap *os.File
	mem     *os.File // /proc/PID/mem, for where process_vm_readv and process_vm_writev are refused

	use    sync.RWMutex // held for reading by every method that needs the descriptors
	closed bool

	mu      sync.Mutex
	tracked []vmm.Range // private pages at the latest Track; nil when there was none
	marked  bool
}

// segment is a run of RAM that is contiguous in the process's address space.
type segment struct {
	off  int64  // in RAM
	len  int64  // bytes
	addr uint64 // in the process
}

// Open finds in process pid the mapping of the RAM file at path, of size bytes from its start. The mapping may be
// split in parts and its parts may lie anywhere, but must cover the file without a gap. It fails with
// spore.CodeConflict when the process is gone, spore.CodeNotFound when it does not map the file and
// spore.CodeUnsupported when the host does not let this process look into that one.
func Open(pid int, path string, size int64) (*Memory, error) {
	if size <= 0 || size%vmm.PageSize != 0 {
		return nil, fmt.Errorf("procmem: RAM size %d is not a positive multiple of %d", size, vmm.PageSize)
	}
	fi, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("procmem: RAM file: %w", err)
	}
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, gone(pid, err)
	}
	m := &Memory{pid: pid, pidfd: pidfd, size: size}
	if err := m.attach(path, fi); err != nil {
		m.Close()
		return nil, err
	}
	return m, nil
}

func (m *Memory) attach(path string, fi os.FileInfo) error {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", m.pid))
	if err != nil {
		return m.explain("read the memory map", err)
	}
	mappings, err := ParseMaps(text)
	if err != nil {
		return err
	}
	if m.runs, m.private, err = locate(mappings, newFileID(m.pid, path, fi), m.size); err != nil {
		if !m.alive() {
			return gone(m.pid, err)
		}
		return err
	}
	return m.open()
}

// open opens the process's memory, once it is known where in it the RAM is.
func (m *Memory) open() (err error) {
	// Both files are bound to the address space at open, so they can never show another process that took the pid.
	if m.pagemap, err = os.Open(fmt.Sprintf("/proc/%d/pagemap", m.pid)); err != nil {
		return m.explain("open the page map", err)
	}
	if m.mem, err = os.OpenFile(fmt.Sprintf("/proc/%d/mem", m.pid), os.O_RDWR, 0); err != nil {
		return m.explain("open the memory", err)
	}
	if !m.alive() {
		return gone(m.pid, nil)
	}
	return nil
}

// locate picks the mappings of the file and joins them to segments that cover [0, size).
func locate(all []Mapping, file fileID, size int64) ([]segment, bool, error) {
	var parts []Mapping
	for _, mp := range all {
		if file.matches(mp) && mp.Offset < size {
			parts = append(parts, mp)
		}
	}
	if len(parts) == 0 {
		return nil, false, spore.Errorf(spore.CodeNotFound, "the process does not map the RAM file %s", file.path)
	}
	slices.SortStableFunc(parts, func(a, b Mapping) int { return cmp.Compare(a.Offset, b.Offset) })
	var runs []segment
	var next int64
	for _, p := range parts {
		if p.Private != parts[0].Private {
			return nil, false, fmt.Errorf("procmem: %s is mapped both private and shared", file.path)
		}
		length := min(int64(p.End-p.Start), size-p.Offset)
		if p.Offset > next {
			return nil, false, fmt.Errorf("procmem: the mapping of %s has a gap at %d", file.path, next)
		}
		if p.Offset < next {
			return nil, false, fmt.Errorf("procmem: %s is mapped twice at offset %d", file.path, p.Offset)
		}
		if n := len(runs); n > 0 && runs[n-1].addr+uint64(runs[n-1].len) == p.Start {
			runs[n-1].len += length
		} else {
			runs = append(runs, segment{off: p.Offset, len: length, addr: p.Start})
		}
		next = p.Offset + length
	}
	if next != size {
		return nil, false, fmt.Errorf("procmem: the mapping of %s ends at %d, not at %d", file.path, next, size)
	}
	return runs, parts[0].Private, nil
}

// Size is the size of the RAM in bytes.
func (m *Memory) Size() int64 { return m.size }

// IsPrivate says whether the RAM file is mapped copy-on-write. If not, the file itself is the memory.
func (m *Memory) IsPrivate() bool { return m.private }

// hold keeps Close from happening until release is called.
func (m *Memory) hold() (release func(), err error) {
	m.use.RLock()
	if m.closed {
		m.use.RUnlock()
		return nil, gone(m.pid, os.ErrClosed)
	}
	return m.use.RUnlock, nil
}

// Close lets go of the process. It is idempotent and waits for methods that are running; later ones answer as if the
// process had ended.
func (m *Memory) Close() error {
	m.use.Lock()
	defer m.use.Unlock()
	if m.closed {
		return nil
	}
	m.closed = true
	errs := []error{unix.Close(m.pidfd)}
	for _, f := range []*os.File{m.pagemap, m.mem} {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	return errors.Join(errs...)
}

// alive says whether the process still runs. Since pids are reused, what an operation by pid brought back counts only
// if the process is alive after it.
func (m *Memory) alive() bool {
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(m.pidfd), Events: unix.POLLIN}}, 0)
		if err == unix.EINTR {
			continue
		}
		return err == nil && n == 0
	}
}

func (m *Memory) explain(what string, err error) error {
	switch {
	case !m.alive(), errors.Is(err, syscall.ESRCH):
		return gone(m.pid, err)
	case errors.Is(err, os.ErrPermission):
		return spore.Errorf(spore.CodeUnsupported, "this host does not let Spore %s of process %d", what, m.pid).WithCause(err).
			WithHint("run the server as root, or set kernel.yama.ptrace_scope to 0")
	}
	return fmt.Errorf("procmem: %s of process %d: %w", what, m.pid, err)
}

func gone(pid int, cause error) error {
	return spore.Errorf(spore.CodeConflict, "process %d has ended", pid).WithCause(cause)
}
