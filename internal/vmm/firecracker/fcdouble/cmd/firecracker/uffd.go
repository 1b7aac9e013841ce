package main

import (
	"encoding/json"
	"net"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	uffdNew          = 0xaa00     // USERFAULTFD_IOC_NEW of /dev/userfaultfd
	uffdAPI          = 0xc018aa3f // UFFDIO_API
	uffdRegister     = 0xc020aa00 // UFFDIO_REGISTER
	uffdVersion      = 0xaa
	uffdEventRemove  = 1 << 3
	uffdModeMissing  = 1
	uffdDescriptorOf = "/dev/userfaultfd"
)

// mapping tells a page server where a part of the memory file belongs.
type mapping struct {
	Base        uint64 `json:"base_host_virt_addr"`
	Size        int64  `json:"size"`
	Offset      int64  `json:"offset"`
	PageSize    int    `json:"page_size,omitempty"`
	PageSizeKiB int    `json:"page_size_kib"` // in bytes, in spite of its name
}

// pageServer is what must stay open as long as the VM lives.
type pageServer struct {
	fd   int
	conn *net.UnixConn
}

// fromServer maps RAM whose pages another process brings when they are touched.
func fromServer(rel release, path string, size int64, track bool) (*memory, *pageServer, error) {
	m, err := anonymous(rel, size, track)
	if err != nil {
		return nil, nil, say("Failed to restore guest memory: %w", err)
	}
	fd, err := openUffd()
	if err != nil {
		return nil, nil, say("Failed to UFFD object: %w", err)
	}
	var maps []mapping
	for _, r := range m.regions {
		base := uint64(uintptr(unsafe.Pointer(&r.bytes[0])))
		arg := [4]uint64{base, uint64(len(r.bytes)), uffdModeMissing, 0}
		if _, _, no := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), uffdRegister, uintptr(unsafe.Pointer(&arg))); no != 0 {
			return nil, nil, say("Failed to register memory address range with the userfaultfd object: %w", no)
		}
		mp := mapping{Base: base, Size: int64(len(r.bytes)), Offset: r.offset, PageSize: pageSize, PageSizeKiB: pageSize}
		if !rel.since(12) {
			mp.PageSize = 0
		}
		maps = append(maps, mp)
	}
	text, err := json.Marshal(maps)
	if err != nil {
		return nil, nil, err
	}
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, nil, say("Failed to connect to UDS Unix stream: %w", err)
	}
	if _, _, err := conn.WriteMsgUnix(text, unix.UnixRights(fd), nil); err != nil {
		return nil, nil, say("Failed to sends file descriptor: %w", err)
	}
	return m, &pageServer{fd, conn}, nil
}

func openUffd() (int, error) {
	var fd uintptr
	no := unix.ENOENT
	if dev, err := os.OpenFile(uffdDescriptorOf, os.O_RDWR, 0); err == nil {
		fd, _, no = unix.Syscall(unix.SYS_IOCTL, dev.Fd(), uffdNew, unix.O_CLOEXEC|unix.O_NONBLOCK)
		dev.Close()
	}
	if no != 0 {
		fd, _, no = unix.Syscall(unix.SYS_USERFAULTFD, unix.O_CLOEXEC|unix.O_NONBLOCK, 0, 0)
	}
	if no != 0 {
		return -1, no
	}
	api := [3]uint64{uffdVersion, uffdEventRemove, 0}
	if _, _, no := unix.Syscall(unix.SYS_IOCTL, fd, uffdAPI, uintptr(unsafe.Pointer(&api))); no != 0 {
		unix.Close(int(fd))
		return -1, no
	}
	return int(fd), nil
}
