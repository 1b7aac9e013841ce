package usernet

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
)

// cable is the connection to the VM, as its hypervisor makes it.
type cable interface {
	// receive answers the next frame of the guest, valid until the one after; empty for one that the link does not carry. It fails
	// when the VM is gone.
	receive() ([]byte, error)
	// send sends frames, each after headroom bytes that are the cable's, and says how many found no room.
	send(frames [][]byte) (lost int, err error)
	Close() error
}

// headroom is what precedes each frame that is sent: as much as the larger of the headers that cables put there.
const headroom = vnetHeader

// stream is a cable through a stream socket: each frame comes after its length in 4 bytes, big-endian.
type stream struct {
	io.ReadWriteCloser
	frames *frameReader
	buf    []byte
}

func newStream(conn io.ReadWriteCloser) *stream {
	return &stream{ReadWriteCloser: conn, frames: newFrameReader(conn)}
}

func (s *stream) receive() ([]byte, error) { return s.frames.next() }

func (s *stream) send(frames [][]byte) (int, error) {
	const lengthAt = headroom - 4
	s.buf = s.buf[:0]
	for _, f := range frames {
		binary.BigEndian.PutUint32(f[lengthAt:], uint32(len(f)-headroom))
		s.buf = append(s.buf, f[lengthAt:]...)
	}
	_, err := s.Write(s.buf)
	return 0, err
}

// frameReader reads frames, each after its length in 4 bytes, big-endian.
type frameReader struct {
	in  *bufio.Reader
	buf [etherHeader + mtu]byte
}

func newFrameReader(r io.Reader) *frameReader {
	return &frameReader{in: bufio.NewReaderSize(r, 64<<10)}
}

// next is the next frame, valid until the one after; empty for one that is too long for the link.
func (r *frameReader) next() ([]byte, error) {
	var head [4]byte
	if _, err := io.ReadFull(r.in, head[:]); err != nil {
		return nil, err
	}
	size := binary.BigEndian.Uint32(head[:])
	if size > maxFrame {
		return nil, fmt.Errorf("%w: it sends a frame of %d bytes", errNoVM, size)
	}
	if int(size) > len(r.buf) {
		_, err := r.in.Discard(int(size))
		return nil, err
	}
	_, err := io.ReadFull(r.in, r.buf[:size])
	return r.buf[:size], err
}
