package procmem

import (
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// readEntry reads the page map entry of the page that holds the first byte of b.
func readEntry(pagemap *os.File, b []byte) (uint64, error) {
	var buf [8]byte
	pos := int64(uintptr(unsafe.Pointer(&b[0]))) / int64(os.Getpagesize()) * 8
	if _, err := pagemap.ReadAt(buf[:], pos); err != nil {
		return 0, err
	}
	return binary.NativeEndian.Uint64(buf[:]), nil
}

// ReadAt reads guest RAM. It brings swapped pages back and makes no page private.
func (m *Memory) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("procmem: read at negative offset %d", off)
	}
	if off >= m.size {
		return 0, io.EOF
	}
	var short error
	if rest := m.size - off; int64(len(p)) > rest {
		p, short = p[:rest], io.EOF
	}
	n, err := m.transfer(p, off, vmRead, m.mem.ReadAt, "read the memory")
	if err == nil {
		err = short
	}
	return n, err
}

// WriteAt writes guest RAM in the process; the RAM file stays as it is if it is mapped private. Bytes past the end of
// RAM are refused and nothing is written.
func (m *Memory) WriteAt(p []byte, off int64) (int, error) {
	if off < 0 || off > m.size || int64(len(p)) > m.size-off {
		return 0, fmt.Errorf("procmem: write of %d bytes at %d is outside of RAM of %d bytes", len(p), off, m.size)
	}
	return m.transfer(p, off, vmWrite, m.mem.WriteAt, "write the memory")
}

type vmCall func(pid int, local []unix.Iovec, remote []unix.RemoteIovec) (int, error)

func vmRead(pid int, local []unix.Iovec, remote []unix.RemoteIovec) (int, error) {
	return unix.ProcessVMReadv(pid, local, remote, 0)
}

func vmWrite(pid int, local []unix.Iovec, remote []unix.RemoteIovec) (int, error) {
	return unix.ProcessVMWritev(pid, local, remote, 0)
}

// transfer moves p segment by segment, by the system call that moves whole runs and, where that is refused (seccomp
// and yama treat it apart), by /proc/PID/mem.
func (m *Memory) transfer(p []byte, off int64, call vmCall, file func([]byte, int64) (int, error), what string) (int, error) {
	release, err := m.hold()
	if err != nil {
		return 0, err
	}
	defer release()
	done := 0
	for done < len(p) {
		addr, room := m.resolve(off + int64(done))
		part := p[done:][:min(int64(len(p)-done), room)]
		local := unix.Iovec{Base: &part[0]}
		local.SetLen(len(part))
		n, err := call(m.pid, []unix.Iovec{local}, []unix.RemoteIovec{{Base: uintptr(addr), Len: len(part)}})
		if err == syscall.EINTR {
			continue
		}
		if err == syscall.EPERM || err == syscall.ENOSYS || err == syscall.EFAULT {
			n, err = file(part, int64(addr))
		}
		if n > 0 {
			done += n
			continue // a short count says nothing about why; the next round does
		}
		if err == nil || err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return done, m.explain(what, err)
	}
	if !m.alive() {
		return 0, gone(m.pid, nil)
	}
	return done, nil
}

// resolve finds the address of an offset inside RAM and how many bytes follow it without a break.
func (m *Memory) resolve(off int64) (addr uint64, room int64) {
	for _, s := range m.runs {
		if off < s.off+s.len {
			return s.addr + uint64(off-s.off), s.off + s.len - off
		}
	}
	panic("procmem: offset outside of RAM") // callers check bounds; locate proves that the segments cover them
}
