package frozen

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/sporevm/spore"
)

// syncDir makes the names in dir durable.
func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Sync(); err != nil {
		return fmt.Errorf("sync %s: %w", dir, err)
	}
	return nil
}

// writeSynced writes a new file and makes its bytes durable, though not yet its name.
func writeSynced(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// readSmall reads a file that is known to be small, so that a damaged store cannot make us swallow gigabytes.
func readSmall(path string) ([]byte, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a file", filepath.Base(path))
	}
	if st.Size() > maxDocument {
		return nil, fmt.Errorf("%s is %d bytes long, which none of ours is", filepath.Base(path), st.Size())
	}
	return os.ReadFile(path)
}

// lockFile opens path, creating it, and takes a flock of it; how is unix.LOCK_SH or LOCK_EX, perhaps with LOCK_NB. The
// lock is gone when the file is closed or the process ends, however it ends.
func lockFile(path string, how int) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := flock(f, how); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func flock(f *os.File, how int) error {
	for {
		err := unix.Flock(int(f.Fd()), how)
		if err != unix.EINTR {
			return err
		}
	}
}

// ioError turns a full disk into CodeNoSpace and says how much is missing of the need bytes that were still to be
// written below dir; any other error is returned with what was being done.
func ioError(doing, dir string, need int64, err error) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		missing := int64(1)
		if free, ferr := freeBytes(dir); ferr == nil && need > free {
			missing = need - free
		}
		return noSpace(missing).WithCause(err)
	}
	var typed *spore.Error
	if errors.As(err, &typed) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return fmt.Errorf("%s: %w", doing, err)
}

func noSpace(missing int64) *spore.Error {
	return spore.Errorf(spore.CodeNoSpace, "the disk is full: at least %d more bytes are needed", missing).
		WithHint("remove templates or snapshots, run spore gc, or enlarge the disk")
}

// freeBytes is what can still be written below dir.
func freeBytes(dir string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, fmt.Errorf("statfs %s: %w", dir, err)
	}
	return int64(st.Bavail) * st.Bsize, nil
}

// allocatedBytes is what the files below path take up on disk. A path that is gone takes up nothing.
func allocatedBytes(path string) (int64, error) {
	var sum int64
	err := filepath.WalkDir(path, func(_ string, d fs.DirEntry, err error) error {
		if err == nil {
			var info fs.FileInfo
			if info, err = d.Info(); err == nil {
				sum += info.Sys().(*syscall.Stat_t).Blocks * 512
			}
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	})
	return sum, err
}
