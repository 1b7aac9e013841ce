package image

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	spore "github.com/sporevm/spore"
)

func TestBlankDisk(t *testing.T) {
	tool, err := mkfsPath()
	if err != nil {
		t.Skip(err)
	}
	ctx, dir := context.Background(), t.TempDir()
	stale := filepath.Join(dir, "."+blankPrefix+"stale")
	if err := os.WriteFile(stale, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, gib := range []int64{1, 10, 100} {
		path, err := BlankDisk(ctx, dir, gib<<30)
		if err != nil {
			t.Fatal(err)
		}
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err != nil {
			t.Fatal(err)
		}
		t.Logf("%d GiB: %d KiB allocated", gib, st.Blocks/2)
		if st.Size != gib<<30 || st.Blocks*512 > 1<<20 {
			t.Errorf("%d GiB: %d bytes, %d allocated", gib, st.Size, st.Blocks*512)
		}
		if out, err := exec.Command(filepath.Join(filepath.Dir(tool), "e2fsck"), "-fn", path).CombinedOutput(); err != nil {
			t.Errorf("e2fsck: %v\n%s", err, out)
		}
	}
	if _, err := os.Stat(stale); err == nil {
		t.Error("what a dead process left is still there")
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 3 {
		t.Errorf("entries: %v, %v", entries, err)
	}
}

func TestBlankDisksAreEqual(t *testing.T) {
	if _, err := mkfsPath(); err != nil {
		t.Skip(err)
	}
	var images [2][]byte
	for i := range images {
		dir := t.TempDir()
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				if _, err := BlankDisk(context.Background(), dir, 64<<20); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		path, err := BlankDisk(context.Background(), dir, 64<<20)
		if err != nil {
			t.Fatal(err)
		}
		if images[i], err = os.ReadFile(path); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(images[0], images[1]) {
		t.Error("two blank disks of one size differ")
	}
}

func TestBlankDiskRefusals(t *testing.T) {
	for _, size := range []int64{0, -4096, 1 << 20, 64<<20 + 1, 1 << 50} {
		_, err := BlankDisk(context.Background(), t.TempDir(), size)
		if spore.CodeOf(err) != spore.CodeInvalid || spore.AsError(err).Hint == "" {
			t.Errorf("%d: %v", size, err)
		}
	}
	if dir := tinyDisk(t, "32k"); dir != "" {
		if _, err := BlankDisk(context.Background(), dir, 1<<30); spore.CodeOf(err) != spore.CodeNoSpace {
			t.Errorf("on a full disk: %v", err)
		}
		if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
			t.Errorf("left: %v, %v", entries, err)
		}
	}
}
