package testbed

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// MountFS mounts a new file system of the kind "ext4", "xfs" (with reflinks) or "btrfs" and returns its directory. It
// lives in a sparse file of sizeMiB (xfs needs 320, btrfs 128) and is gone when the test ends. Without root the test is
// skipped.
func MountFS(t testing.TB, kind string, sizeMiB int) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting a file system needs root")
	}
	makers := map[string]struct {
		tool, debianPackage string
		args                []string
	}{
		"ext4":  {"mkfs.ext4", "e2fsprogs", []string{"-q", "-F"}},
		"xfs":   {"mkfs.xfs", "xfsprogs", []string{"-q", "-f", "-m", "reflink=1"}},
		"btrfs": {"mkfs.btrfs", "btrfs-progs", []string{"-q", "-f"}},
	}
	maker, ok := makers[kind]
	if !ok {
		t.Fatalf("testbed: cannot make a file system %q", kind)
	}
	base := t.TempDir()
	disk, dir := filepath.Join(base, "disk"), filepath.Join(base, "mnt")
	must(t, os.WriteFile(disk, nil, 0o600))
	must(t, os.Truncate(disk, int64(sizeMiB)<<20))
	run(t, nil, base, tool(t, maker.tool, maker.debianPackage), append(maker.args, disk)...)
	must(t, os.Mkdir(dir, 0o755))
	out, err := exec.Command("mount", "-t", kind, "-o", "loop", disk, dir).CombinedOutput()
	if err != nil && strings.Contains(string(out), "unknown filesystem type") {
		t.Skipf("this kernel has no %s", kind)
	}
	if err != nil {
		t.Fatalf("testbed: mounting %s: %v\n%s", kind, err, out)
	}
	t.Cleanup(func() {
		// The loop device was set up to go with the mount, but a lazy unmount would keep both; so it must succeed.
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("testbed: unmounting %s: %v", dir, errors.Join(err, unix.Unmount(dir, unix.MNT_DETACH)))
		}
	})
	return dir
}

// FreeMiB is how much room the file system of dir has, for tests that fill it.
func FreeMiB(t testing.TB, dir string) int {
	t.Helper()
	var st unix.Statfs_t
	must(t, unix.Statfs(dir, &st))
	return int(st.Bavail * uint64(st.Bsize) >> 20)
}
