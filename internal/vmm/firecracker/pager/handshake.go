package pager

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/vmm"
)

const (
	maxHandshake = 64 << 10
	maxRegions   = 256
	hugePage     = 2 << 20
	addressLimit = 1 << 47 // end of the addresses that a process has on this architecture
)

// region is a stretch of guest RAM in the address space of the VMM.
type region struct {
	addr, size uint64
	off        int64 // in RAM
	page       int64 // size of its pages: 4 KiB or 2 MiB
}

func (r region) end() uint64 { return r.addr + r.size }

// parseHandshake reads where the VMM has its guest's RAM. The regions come back in the order of their addresses; together
// they are all of RAM, which is of size bytes, once.
func parseHandshake(text []byte, size int64) ([]region, error) {
	var said []struct {
		Addr    uint64 `json:"base_host_virt_addr"`
		Size    uint64 `json:"size"`
		Offset  uint64 `json:"offset"`
		Page    uint64 `json:"page_size"`
		PageKiB uint64 `json:"page_size_kib"`
	}
	if err := json.Unmarshal(text, &said); err != nil {
		return nil, badHandshake("it is not a list of memory regions: %w", err)
	}
	if len(said) == 0 || len(said) > maxRegions {
		return nil, badHandshake("it names %d memory regions", len(said))
	}
	regions := make([]region, 0, len(said))
	for i, s := range said {
		page := s.Page
		if page == 0 {
			// The older name of the field. Its unit was meant to be KiB, but has always been bytes.
			page = s.PageKiB
			if page == vmm.PageSize>>10 || page == hugePage>>10 {
				page <<= 10
			}
		}
		bad := ""
		switch {
		case page != vmm.PageSize && page != hugePage:
			bad = "page size"
		case s.Size == 0 || s.Size%page != 0 || s.Size > uint64(size):
			bad = "size"
		case s.Offset%page != 0 || s.Offset > uint64(size)-s.Size:
			bad = "offset"
		case s.Addr == 0 || s.Addr%page != 0 || s.Addr > addressLimit-s.Size:
			bad = "address"
		}
		if bad != "" {
			return nil, badHandshake("the %s of memory region %d cannot be", bad, i)
		}
		regions = append(regions, region{addr: s.Addr, size: s.Size, off: int64(s.Offset), page: int64(page)})
	}
	slices.SortFunc(regions, func(a, b region) int { return cmp.Compare(a.off, b.off) })
	next := int64(0)
	for _, r := range regions {
		if r.off != next {
			return nil, badHandshake("its memory regions overlap, or leave some of the memory out, at %d", min(next, r.off))
		}
		next += int64(r.size)
	}
	if next != size {
		return nil, badHandshake("it has %d bytes of memory and the frozen VM has %d", next, size)
	}
	slices.SortFunc(regions, func(a, b region) int { return cmp.Compare(a.addr, b.addr) })
	for i, r := range regions[1:] {
		if r.addr < regions[i].end() {
			return nil, badHandshake("two memory regions share the address %#x", r.addr)
		}
	}
	return regions, nil
}

func badHandshake(format string, args ...any) error {
	return spore.Errorf(spore.CodeInvalid, "the VMM's handshake: "+format, args...)
}

// receive reads the one message of a VMM: text, and a descriptor beside it. Everything but a descriptor that is returned is
// closed. The deadline bounds it.
func receive(conn *net.UnixConn, deadline time.Time) (text []byte, fd int, err error) {
	fd = -1
	if err := conn.SetReadDeadline(deadline); err != nil {
		return nil, -1, err
	}
	defer func() {
		if err != nil && fd >= 0 {
			err = errors.Join(err, unix.Close(fd))
			fd = -1
		}
	}()
	buf, oob := make([]byte, maxHandshake), make([]byte, unix.CmsgSpace(4*16))
	for {
		n, oobn, flags, _, err := conn.ReadMsgUnix(buf[len(text):], oob)
		got, parseErr := descriptors(oob[:oobn])
		for _, g := range got {
			if fd < 0 {
				fd = g
			} else {
				parseErr = errors.Join(errors.New("it sent more than one descriptor"), unix.Close(g))
			}
		}
		text = buf[:len(text)+n]
		switch {
		case err == nil && parseErr != nil:
			return nil, fd, badHandshake("%w", parseErr)
		case err == nil && flags&unix.MSG_CTRUNC != 0:
			return nil, fd, badHandshake("it sent too many descriptors")
		case errors.Is(err, io.EOF) || err == nil && n == 0:
			if len(text) == 0 && fd < 0 {
				return nil, -1, io.EOF
			}
			return nil, fd, badHandshake("it ended after %d bytes", len(text))
		case err != nil:
			return nil, fd, fmt.Errorf("pager: receive the VMM's handshake: %w", err)
		case json.Valid(text):
			if fd < 0 {
				return nil, fd, badHandshake("it sent no descriptor")
			}
			return bytes.Clone(text), fd, nil
		case len(text) == len(buf):
			return nil, fd, badHandshake("it is longer than %d bytes", len(buf))
		}
	}
}

// descriptors takes the descriptors out of a message. What was received is returned with an error too.
func descriptors(oob []byte) ([]int, error) {
	if len(oob) == 0 {
		return nil, nil
	}
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	var fds []int
	for i := range messages {
		got, e := unix.ParseUnixRights(&messages[i])
		fds = append(fds, got...)
		err = errors.Join(err, e)
	}
	return fds, err
}
