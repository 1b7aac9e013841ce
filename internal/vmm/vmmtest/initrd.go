package vmmtest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/u-root/u-root/pkg/cpio"
)

// guestModules are what the guest needs of a distribution's kernel, in load order.
var guestModules = []string{"virtio_ring", "virtio", "virtio_pci_modern_dev", "virtio_pci_legacy_dev", "virtio_pci", "virtio_blk", "virtio_console", "failover", "net_failover", "virtio_net",
	"virtio_mmio", "vsock", "vmw_vsock_virtio_transport_common", "vmw_vsock_virtio_transport"}

// Initrd makes, in dir, an initramfs with the suite's guest and the modules it needs from a directory of kernel modules, and
// returns its path. SPORE_TEST_GUEST names a guest that was built before, for machines without a Go toolchain.
func Initrd(t testing.TB, dir, modules string) string {
	t.Helper()
	guest := os.Getenv("SPORE_TEST_GUEST")
	if guest == "" {
		guest = filepath.Join(dir, "guest")
		build := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", guest, "github.com/sporevm/spore/internal/vmm/vmmtest/guest")
		build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64", "GOFLAGS=-buildvcs=false")
		if out, err := build.CombinedOutput(); err != nil {
			t.Fatalf("build the test guest: %v\n%s", err, out)
		}
	}
	init, err := os.ReadFile(guest)
	if err != nil {
		t.Fatal(err)
	}
	records := []cpio.Record{
		cpio.Directory("dev", 0o755), cpio.Directory("modules", 0o755),
		// The kernel opens it for init before init can mount anything.
		cpio.CharDev("dev/console", 0o600, 5, 1),
		cpio.StaticFile("init", string(init), 0o755),
	}
	for i, name := range guestModules {
		data := findModule(t, modules, name)
		records = append(records, cpio.StaticFile(fmt.Sprintf("modules/%02d-%s.ko", i, name), string(data), 0o644))
	}
	path := filepath.Join(dir, "initrd")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := cpio.WriteRecordsAndDirs(cpio.Newc.Writer(f), records); err != nil {
		t.Fatal(err)
	}
	if err := cpio.WriteTrailer(cpio.Newc.Writer(f)); err != nil {
		t.Fatal(err)
	}
	return path
}

func findModule(t testing.TB, dir, name string) []byte {
	t.Helper()
	var found string
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && d.Name() == name+".ko" {
			found = path
			return filepath.SkipAll
		}
		return err
	})
	if err != nil || found == "" {
		t.Fatalf("there is no module %s.ko under %s (%v)", name, dir, err)
	}
	data, err := os.ReadFile(found)
	if err != nil {
		t.Fatal(err)
	}
	return data
}
