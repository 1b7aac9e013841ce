package testbed

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Swap gives the machine a swap file of some MiB for the length of the test, and skips the test where that may not be.
func Swap(t *testing.T, mib int) {
	t.Helper()
	const page = 4096
	path := filepath.Join(t.TempDir(), "swap")
	buf := make([]byte, mib<<20)
	// The header of mm/swapfile.c: version, last page, signature at the end of the first page.
	binary.NativeEndian.PutUint32(buf[1024:], 1)
	binary.NativeEndian.PutUint32(buf[1028:], uint32(len(buf)/page-1))
	copy(buf[page-10:], "SWAPSPACE2")
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Write(buf); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil { // the kernel wants its blocks on the disk
		t.Fatal(err)
	}
	name, err := unix.BytePtrFromString(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, errno := unix.Syscall(unix.SYS_SWAPON, uintptr(unsafe.Pointer(name)), 0, 0); errno != 0 {
		t.Skipf("this machine does not let the test turn on swap: %v", errno)
	}
	t.Cleanup(func() {
		if _, _, errno := unix.Syscall(unix.SYS_SWAPOFF, uintptr(unsafe.Pointer(name)), 0, 0); errno != 0 {
			t.Errorf("swapoff %s: %v", path, errno)
		}
	})
}
