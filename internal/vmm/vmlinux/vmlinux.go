// Package vmlinux takes the ELF kernel out of the bzImage that distributions ship, for hypervisors that boot nothing
// else.
package vmlinux

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz/lzma"

	spore "github.com/sporevm/spore"
)

// MaxSize bounds an unpacked kernel in bytes, against files made to fill a disk.
const MaxSize = 512 << 20

// Offsets in the setup header of a bzImage, from the x86 boot protocol.
const (
	offSetupSectors  = 0x1f1
	offBootFlag      = 0x1fe // 0xaa55
	offHeader        = 0x202 // "HdrS"
	offProtocol      = 0x206
	offPayload       = 0x248 // since protocol 2.08, from the end of the setup
	offPayloadLength = 0x24c
	endOfHeader      = 0x250

	sector = 512
)

// Kernel is an open kernel image for x86-64.
type Kernel struct {
	f           *os.File
	path        string
	elf         bool
	offset      int64 // of the compressed payload
	length      int64 // with four bytes at its end that say how long it is unpacked
	compression compression
}

type compression struct {
	name  string
	magic string
	open  func(io.Reader) (io.Reader, error) // nil: not known how
}

// compressions that kernels are built with, by how they begin.
var compressions = []compression{
	{"none", "\x7fELF", func(r io.Reader) (io.Reader, error) { return r, nil }},
	{"gzip", "\x1f\x8b", openGzip},
	{"lz4", "\x02\x21\x4c\x18", openLZ4},
	{"zstd", "\x28\xb5\x2f\xfd", openZstd},
	{"xz", "\xfd7zXZ\x00", openXZ},
	{"bzip2", "BZh", func(r io.Reader) (io.Reader, error) { return bzip2.NewReader(r), nil }},
	{"lzma", "\x5d\x00\x00", openLZMA},
	{"lzo", "\x89LZO", nil},
}

// Open opens a kernel: an ELF file, or a bzImage. It fails with spore.CodeNotFound when there is none, and with
// spore.CodeInvalid when it is something else or for another processor; the field is "kernel".
func Open(path string) (*Kernel, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, spore.Errorf(spore.CodeNotFound, "kernel: there is no file %s", path).WithCause(err)
	}
	if err != nil {
		return nil, fmt.Errorf("vmlinux: %w", err)
	}
	k := &Kernel{f: f, path: path}
	if err := k.inspect(); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return k, nil
}

// Close closes the file.
func (k *Kernel) Close() error { return k.f.Close() }

// IsELF says that the file is the kernel itself, with nothing to unpack.
func (k *Kernel) IsELF() bool { return k.elf }

// Unpackable says whether Extract knows the compression.
func (k *Kernel) Unpackable() bool { return k.elf || k.compression.open != nil }

// Compression is how the kernel in a bzImage is packed, such as "lz4".
func (k *Kernel) Compression() string { return k.compression.name }

func (k *Kernel) inspect() error {
	size, err := k.f.Seek(0, io.SeekEnd)
	if err != nil {
		return fmt.Errorf("vmlinux: %w", err)
	}
	head := make([]byte, min(size, endOfHeader))
	if _, err := k.f.ReadAt(head, 0); err != nil {
		return fmt.Errorf("vmlinux: %w", err)
	}
	if bytes.HasPrefix(head, []byte("\x7fELF")) {
		k.elf = true
		return checkELF(head, k.path)
	}
	if k.offset, k.length, err = payload(head, size); err != nil {
		return spore.Invalidf("kernel", "%s: %w", k.path, err)
	}
	magic := make([]byte, min(k.length, 8))
	if _, err := k.f.ReadAt(magic, k.offset); err != nil {
		return fmt.Errorf("vmlinux: %w", err)
	}
	for _, c := range compressions {
		if bytes.HasPrefix(magic, []byte(c.magic)) {
			k.compression = c
			return nil
		}
	}
	return spore.Invalidf("kernel", "%s: the kernel in it is packed in a way that is not known (%x)", k.path, magic)
}

// checkELF looks at the beginning of an ELF file.
func checkELF(head []byte, path string) error {
	const class64, little, x86 = 2, 1, 62
	if len(head) < 64 || head[4] != class64 || head[5] != little || binary.LittleEndian.Uint16(head[18:]) != x86 {
		return spore.Invalidf("kernel", "%s is not a kernel for x86-64", path)
	}
	return nil
}

// payload finds the packed kernel in a bzImage of size bytes.
func payload(head []byte, size int64) (offset, length int64, err error) {
	le := binary.LittleEndian
	switch {
	case len(head) > 0x3c && string(head[0x38:0x3c]) == "ARM\x64":
		return 0, 0, errors.New("the kernel is for arm64, not for x86-64")
	case len(head) < endOfHeader, le.Uint16(head[offBootFlag:]) != 0xaa55, string(head[offHeader:offHeader+4]) != "HdrS":
		return 0, 0, errors.New("it is neither an ELF file nor a bzImage")
	case le.Uint16(head[offProtocol:]) < 0x0208:
		return 0, 0, errors.New("the kernel is too old: it speaks a boot protocol before 2.08")
	}
	setup := int64(head[offSetupSectors])
	if setup == 0 {
		setup = 4
	}
	offset = (setup+1)*sector + int64(le.Uint32(head[offPayload:]))
	length = int64(le.Uint32(head[offPayloadLength:]))
	if length < 8 || offset > size || length > size-offset {
		return 0, 0, errors.New("the file ends before the kernel in it does")
	}
	return offset, length, nil
}

// Extract writes the ELF kernel to w. It fails with spore.CodeInvalid when what is packed is damaged or no kernel, and
// with spore.CodeUnsupported when it is packed in a way that is not known.
func (k *Kernel) Extract(w io.Writer) error {
	damaged := func(err error) error {
		return spore.Invalidf("kernel", "%s: the kernel in it cannot be unpacked: %w", k.path, err)
	}
	if k.elf {
		_, err := io.Copy(w, io.NewSectionReader(k.f, 0, MaxSize))
		return err
	}
	if k.compression.open == nil {
		return spore.Errorf(spore.CodeUnsupported, "the kernel in %s is packed with %s, which is not supported", k.path, k.compression.name).
			WithHint("use a kernel packed with gzip, lz4, xz or zstd, or an unpacked one")
	}
	var trailer [4]byte
	if _, err := k.f.ReadAt(trailer[:], k.offset+k.length-4); err != nil {
		return fmt.Errorf("vmlinux: %w", err)
	}
	want := int64(binary.LittleEndian.Uint32(trailer[:])) // gzip ends with the same number of its own accord
	if want > MaxSize {
		return damaged(fmt.Errorf("it would be of %d bytes", want))
	}
	n := k.length
	if k.compression.name != "gzip" && k.compression.name != "none" {
		n -= 4
	}
	r, err := k.compression.open(bufio.NewReaderSize(io.NewSectionReader(k.f, k.offset, n), 64<<10))
	if err != nil {
		return damaged(err)
	}
	if c, ok := r.(io.Closer); ok {
		defer c.Close()
	}
	head := make([]byte, 64)
	if _, err := io.ReadFull(r, head); err != nil {
		return damaged(err)
	}
	if !bytes.HasPrefix(head, []byte("\x7fELF")) {
		return damaged(errors.New("it is no ELF file"))
	}
	if err := checkELF(head, k.path); err != nil {
		return err
	}
	out := &sink{w: w}
	_, err = io.Copy(out, io.LimitReader(io.MultiReader(bytes.NewReader(head), r), MaxSize+1))
	switch {
	case out.err != nil:
		return fmt.Errorf("vmlinux: %w", out.err)
	case err != nil:
		return damaged(err)
	case out.n > MaxSize:
		return damaged(fmt.Errorf("it is larger than %d bytes", int64(MaxSize)))
	case k.compression.name != "none" && out.n != want:
		return damaged(fmt.Errorf("it is of %d bytes and should be of %d", out.n, want))
	}
	return nil
}

// sink tells a failure to write from one to read.
type sink struct {
	w   io.Writer
	n   int64
	err error
}

func (s *sink) Write(p []byte) (int, error) {
	n, err := s.w.Write(p)
	s.n += int64(n)
	s.err = err
	return n, err
}

func openGzip(r io.Reader) (io.Reader, error) {
	z, err := gzip.NewReader(r)
	if err != nil {
		return nil, err
	}
	z.Multistream(false) // other things may follow
	return z, nil
}

func openZstd(r io.Reader) (io.Reader, error) {
	d, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(MaxSize), zstd.WithDecoderMaxWindow(256<<20))
	if err != nil {
		return nil, err
	}
	return d.IOReadCloser(), nil
}

func openLZMA(r io.Reader) (io.Reader, error) { return lzma.NewReader(r) }
