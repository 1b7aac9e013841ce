package vmlinux

import (
	"bytes"
	"compress/gzip"
	"debug/elf"
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"

	spore "github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/testbed"
)

// plainKernel looks enough like an ELF kernel.
func plainKernel(n int) []byte {
	b := make([]byte, n)
	copy(b, "\x7fELF\x02\x01\x01")
	binary.LittleEndian.PutUint16(b[18:], 62)
	for i := 64; i < n; i++ {
		b[i] = byte(i * i >> 8)
	}
	return b
}

// image is a bzImage around a packed kernel.
func image(packed []byte) []byte {
	const setup = 3
	b := make([]byte, (setup+1)*sector+64)
	b[offSetupSectors] = setup
	le := binary.LittleEndian
	le.PutUint16(b[offBootFlag:], 0xaa55)
	copy(b[offHeader:], "HdrS")
	le.PutUint16(b[offProtocol:], 0x020f)
	le.PutUint32(b[offPayload:], 64)
	le.PutUint32(b[offPayloadLength:], uint32(len(packed)))
	return append(b, packed...)
}

func withSize(packed []byte, n int) []byte {
	return binary.LittleEndian.AppendUint32(bytes.Clone(packed), uint32(n))
}

// storeLZ4 packs without matches but one.
func storeLZ4(plain []byte) []byte {
	out := []byte("\x02\x21\x4c\x18")
	for len(plain) > 0 {
		part := plain[:min(len(plain), lz4Block)]
		plain = plain[len(part):]
		block := []byte{0xf0}
		n := len(part) - 15
		for ; n >= 255; n -= 255 {
			block = append(block, 255)
		}
		block = append(block, byte(n))
		block = append(block, part...)
		out = binary.LittleEndian.AppendUint32(out, uint32(len(block)))
		out = append(out, block...)
	}
	return out
}

func packings(t testing.TB, plain []byte) map[string][]byte {
	var gz, x bytes.Buffer
	zw := gzip.NewWriter(&gz)
	zw.Write(plain)
	zw.Close()
	xw, err := xz.NewWriter(&x)
	if err != nil {
		t.Fatal(err)
	}
	xw.Write(plain)
	xw.Close()
	enc, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	return map[string][]byte{
		"gzip": gz.Bytes(),
		"xz":   withSize(x.Bytes(), len(plain)),
		"zstd": withSize(enc.EncodeAll(plain, nil), len(plain)),
		"lz4":  withSize(storeLZ4(plain), len(plain)),
		"none": plain,
	}
}

func write(t testing.TB, data []byte) string {
	path := filepath.Join(t.TempDir(), "kernel")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestExtract(t *testing.T) {
	plain := plainKernel(9 << 20) // more than one block of lz4
	for name, packed := range packings(t, plain) {
		k, err := Open(write(t, image(packed)))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		var out bytes.Buffer
		if err := k.Extract(&out); err != nil || !bytes.Equal(out.Bytes(), plain) || k.Compression() != name || k.IsELF() {
			t.Errorf("%s: %d bytes as %s, %v", name, out.Len(), k.Compression(), err)
		}
		k.Close()
	}
	k, err := Open(write(t, plain))
	if err != nil || !k.IsELF() {
		t.Fatalf("a plain kernel: %v", err)
	}
	defer k.Close()
	var out bytes.Buffer
	if err := k.Extract(&out); err != nil || !bytes.Equal(out.Bytes(), plain) {
		t.Error(err)
	}
}

// The kernel that the other tests boot, as its distribution packs it.
func TestExtractReal(t *testing.T) {
	path, _ := testbed.KernelFiles(t)
	k, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	var out bytes.Buffer
	if err := k.Extract(&out); err != nil {
		t.Fatalf("%s: %v", k.Compression(), err)
	}
	f, err := elf.NewFile(bytes.NewReader(out.Bytes()))
	if err != nil || f.Machine != elf.EM_X86_64 || f.Type != elf.ET_EXEC || len(f.Progs) == 0 {
		t.Fatalf("%+v, %v", f, err)
	}
}

func TestRefusals(t *testing.T) {
	plain := plainKernel(100 << 10)
	packed := packings(t, plain)
	arm := plainKernel(4096)
	arm[18] = 183
	for name, data := range map[string][]byte{
		"empty": {}, "text": []byte("no kernel"), "arm": arm, "cut": image(packed["zstd"])[:3000],
		"a short ELF": []byte("\x7fELF\x02\x01"), "not known": image(bytes.Repeat([]byte{7}, 100)),
	} {
		k, err := Open(write(t, data))
		if spore.CodeOf(err) != spore.CodeInvalid {
			t.Errorf("%s: %v", name, err)
		}
		if err == nil {
			k.Close()
		}
	}
	for name, data := range map[string][]byte{
		"damaged":    append(bytes.Clone(packed["lz4"][:100]), make([]byte, 1000)...),
		"wrong size": withSize(storeLZ4(plain), len(plain)-1),
		"no ELF":     withSize(storeLZ4(make([]byte, 5000)), 5000),
		"short":      withSize(storeLZ4(plain[:80]), 80)[:60],
	} {
		k, err := Open(write(t, image(data)))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if err := k.Extract(&bytes.Buffer{}); spore.CodeOf(err) != spore.CodeInvalid {
			t.Errorf("%s: %v", name, err)
		}
		k.Close()
	}
	if _, err := Open(filepath.Join(t.TempDir(), "none")); spore.CodeOf(err) != spore.CodeNotFound {
		t.Error(err)
	}
}

func FuzzUnpackLZ4(f *testing.F) {
	f.Add([]byte{0x11, 'a', 1, 0, 0x10, 'b'})
	f.Add(storeLZ4(plainKernel(300))[8:])
	f.Fuzz(func(t *testing.T, src []byte) {
		dst := make([]byte, 4096)
		if n, err := unpackLZ4(dst, src); err == nil && n > len(dst) {
			t.Fatal(n)
		}
	})
}

func FuzzOpen(f *testing.F) {
	for _, packed := range packings(f, plainKernel(1000)) {
		f.Add(image(packed))
	}
	f.Add(plainKernel(100))
	path := filepath.Join(f.TempDir(), "kernel")
	f.Fuzz(func(t *testing.T, data []byte) {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		k, err := Open(path)
		if err != nil {
			return
		}
		defer k.Close()
		var out bytes.Buffer
		if err := k.Extract(&out); err == nil && (out.Len() < 64 || !bytes.HasPrefix(out.Bytes(), []byte("\x7fELF"))) {
			t.Fatalf("%d bytes", out.Len())
		}
	})
}
