package link

import (
	"encoding/binary"
	"io"
)

// A frame of the multiplexer begins with a header: version, type, flags, stream, length.
const (
	frameHeader = 12
	frameData   = 0 // the type whose length says how many bytes follow
)

// frames writes the header of each frame together with what follows it. The multiplexer hands them over one after the
// other, and every write to a virtio port costs an exit from the guest.
type frames struct {
	io.ReadWriteCloser
	head []byte // of a frame whose data comes with the next Write
	buf  []byte
}

func (f *frames) Write(p []byte) (int, error) {
	if f.head == nil {
		if len(p) == frameHeader && p[1] == frameData && binary.BigEndian.Uint32(p[8:]) > 0 {
			f.head = append(f.buf[:0], p...)
			return len(p), nil
		}
		return f.ReadWriteCloser.Write(p)
	}
	f.buf = append(f.head, p...)
	f.head = nil
	n, err := f.ReadWriteCloser.Write(f.buf)
	if cap(f.buf) > maxKept {
		f.buf = nil
	}
	return max(0, n-frameHeader), err
}

// maxKept bounds the memory that is kept from one frame to the next, in bytes.
const maxKept = 64 << 10
