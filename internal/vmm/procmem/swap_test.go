package procmem

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// swapOn gives the machine a small swap file for the length of the test.
func swapOn(t *testing.T) {
	t.Helper()
	const npages = 2048
	path := filepath.Join(t.TempDir(), "swap")
	buf := make([]byte, npages*page)
	binary.NativeEndian.PutUint32(buf[1024:], 1)        // version
	binary.NativeEndian.PutUint32(buf[1028:], npages-1) // last page
	copy(buf[page-10:], "SWAPSPACE2")
	if err := os.WriteFile(path, buf, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Sync(); err != nil {
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
