package firecracker

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"
)

// The tiny guest is a kernel of a few instructions, for hosts whose KVM runs a guest but gets no stock kernel through its
// boot. It says hello on the serial port, and then counts and writes for ever: the counter is at tinyCounter, and each
// turn writes it to the next of tinyPages pages from tinyArea on.
const (
	tinyEntry   = 0x100000
	tinyCounter = 0x200000
	tinyArea    = 0x1000000
	tinyPages   = 64
	tinyHello   = "hello from the tiny guest\n"
)

// tinyPanic is a kernel that after a moment finds no init, says so and ends the VM at once.
func tinyPanic(t testing.TB) string {
	t.Helper()
	// mov ecx, 20000; pause; dec ecx; jnz pause: until somebody looks
	code := []byte{0xb9, 0x20, 0x4e, 0, 0, 0xf3, 0x90, 0xff, 0xc9, 0x75, 0xfa}
	code = append(code, 0x66, 0xba, 0xf8, 0x03) // mov dx, 0x3f8
	for _, c := range signs[2] {
		code = append(code, 0xb0, c, 0xee) // mov al, c; out dx, al
	}
	code = append(code, 0xb0, 0xfe, 0xe6, 0x64) // mov al, 0xfe; out 0x64, al
	return elfKernel(t, append(code, 0xeb, 0xfe))
}

// tinyKernel writes the tiny guest as an ELF kernel and returns its path.
func tinyKernel(t testing.TB) string {
	t.Helper()
	var code bytes.Buffer
	emit := func(b ...byte) { code.Write(b) }
	imm32 := func(v uint32) { binary.Write(&code, binary.LittleEndian, v) }
	emit(0x66, 0xba, 0xf8, 0x03) // mov dx, 0x3f8
	for _, c := range []byte(tinyHello) {
		emit(0xb0, c, 0xee) // mov al, c; out dx, al
	}
	emit(0xbb)
	imm32(tinyCounter) // mov ebx, counter
	loop := code.Len()
	emit(0x48, 0xff, 0x03) // inc qword [rbx]
	emit(0x48, 0x8b, 0x03) // mov rax, [rbx]
	emit(0x48, 0x89, 0xc1) // mov rcx, rax
	emit(0x48, 0x81, 0xe1)
	imm32(tinyPages - 1)         // and rcx, pages-1
	emit(0x48, 0xc1, 0xe1, 0x0c) // shl rcx, 12
	emit(0x48, 0x89, 0x81)
	imm32(tinyArea)  // mov [rcx+area], rax
	emit(0xb9)       // mov ecx, n
	imm32(2000)      //
	emit(0xf3, 0x90) // pause
	emit(0xff, 0xc9) // dec ecx
	emit(0x75, 0xfa) // jnz pause
	emit(0xe9)       // jmp loop
	imm32(uint32(int32(loop - (code.Len() + 4))))
	return elfKernel(t, code.Bytes())
}

func elfKernel(t testing.TB, code []byte) string {
	t.Helper()
	const headers = 64 + 56
	le := binary.LittleEndian
	elf := make([]byte, 0x1000)
	copy(elf, "\x7fELF\x02\x01\x01")
	le.PutUint16(elf[16:], 2)  // executable
	le.PutUint16(elf[18:], 62) // x86-64
	le.PutUint32(elf[20:], 1)
	le.PutUint64(elf[24:], tinyEntry)
	le.PutUint64(elf[32:], 64) // program headers
	le.PutUint16(elf[52:], 64)
	le.PutUint16(elf[54:], 56)
	le.PutUint16(elf[56:], 1)
	ph := elf[64:headers]
	le.PutUint32(ph, 1)          // load
	le.PutUint32(ph[4:], 7)      // rwx
	le.PutUint64(ph[8:], 0x1000) // offset
	le.PutUint64(ph[16:], tinyEntry)
	le.PutUint64(ph[24:], tinyEntry)
	le.PutUint64(ph[32:], uint64(len(code)))
	le.PutUint64(ph[40:], uint64(len(code)))
	le.PutUint64(ph[48:], 0x1000)
	path := filepath.Join(t.TempDir(), "tiny")
	if err := os.WriteFile(path, append(elf, code...), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
