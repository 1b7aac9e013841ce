package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	spore "github.com/sporevm/spore"
)

const (
	minBlankSize = 16 << 20
	maxBlankSize = 16 << 40
	blankPrefix  = "blank-"

	// blankVersion changes with the bytes that mkfs is told to write.
	blankVersion = 1
)

// blankFeatures fit Linux 6.1 and differ with no version of e2fsprogs. The journal lets a disk be used again whose VM
// died; it is small, since every block of it that was ever written is a block that snapshots hold.
const blankFeatures = "none,has_journal,ext_attr,dir_index,sparse_super2,filetype,extent,64bit,flex_bg," +
	"metadata_csum,large_file,huge_file,dir_nlink,extra_isize"

// BlankDisk returns the path of an empty, writable ext4 filesystem of size bytes, to be cloned and never written. It is
// made once per size and kept in dir, which the caller has made. Nearly all of it is a hole; the guest should mount it
// with noinit_itable, or the kernel fills some of that hole in the background. Disks of one size have the same bytes
// and the same UUID everywhere.
//
// It fails with CodeInvalid on the field diskMB for a size that ext4 cannot have, with CodeUnsupported when mkfs.ext4 is
// not installed, and with CodeNoSpace when the disk is full.
func BlankDisk(ctx context.Context, dir string, size int64) (string, error) {
	if size < minBlankSize || size > maxBlankSize || size%4096 != 0 {
		return "", spore.Invalidf("diskMB", "a disk of %d bytes cannot be made", size).
			WithHint("choose a size from %d MiB to %d GiB", minBlankSize>>20, int64(maxBlankSize)>>30)
	}
	path := filepath.Join(dir, fmt.Sprintf("%s%d-v%d.ext4", blankPrefix, size, blankVersion))
	if st, err := os.Stat(path); err == nil && st.Size() == size {
		return path, nil
	}
	if err := sweepScratch(dir, "."+blankPrefix); err != nil {
		return "", fmt.Errorf("sweep %s: %w", dir, err)
	}
	f, err := createScratch(dir, "."+blankPrefix+"*")
	if err != nil {
		return "", diskError(err, dir, 1<<20)
	}
	defer os.Remove(f.Name()) // fails once renamed
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		return "", diskError(err, dir, 1<<20)
	}
	if err := formatBlank(ctx, f.Name(), size); err != nil {
		return "", err
	}
	if err := errors.Join(f.Chmod(0o444), f.Sync()); err != nil {
		return "", diskError(err, dir, 1<<20)
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return "", err
	}
	return path, syncDir(dir)
}

func formatBlank(ctx context.Context, path string, size int64) error {
	tool, err := mkfsPath()
	if err != nil {
		return err
	}
	// Group descriptors of large disks dominate what is allocated, hence 32-bit inodes ratios as large as mkfs takes
	// sensibly, and no reserved descriptors for growth.
	cmd := exec.CommandContext(ctx, tool, "-q", "-F",
		"-O", blankFeatures,
		"-b", "4096", "-I", "256", "-i", "16384", "-m", "0", "-J", "size=4",
		"-U", "5b0e5b0e-0000-4000-8000-000000000001",
		"-E", "hash_seed=5b0e5b0e-0000-4000-8000-000000000002,lazy_itable_init=1,lazy_journal_init=1,nodiscard,root_owner=0:0,packed_meta_blocks=1,num_backup_sb=0",
		"-e", "remount-ro", path, fmt.Sprintf("%dk", size/1024))
	cmd.Env = []string{"MKE2FS_CONFIG=/dev/null", "E2FSPROGS_FAKE_TIME=1", "SOURCE_DATE_EPOCH=1", "LC_ALL=C", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	out, err := cmd.CombinedOutput()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err == nil {
		return nil
	}
	text := strings.TrimSpace(string(out))
	if strings.Contains(text, "No space left on device") {
		return noSpace(filepath.Dir(path), 1<<20, available(filepath.Dir(path)))
	}
	return fmt.Errorf("mkfs.ext4: %w: %s", err, text)
}

// mkfsPath finds the tool, which lies where only root's PATH may lead.
func mkfsPath() (string, error) {
	if path, err := exec.LookPath("mkfs.ext4"); err == nil {
		return path, nil
	}
	for _, path := range []string{"/usr/sbin/mkfs.ext4", "/sbin/mkfs.ext4"} {
		if _, err := os.Stat(path); err == nil {
			return path, nil
		} else if !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
	}
	return "", spore.Errorf(spore.CodeUnsupported, "mkfs.ext4 is not installed").WithHint("install e2fsprogs")
}
