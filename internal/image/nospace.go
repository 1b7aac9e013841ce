package image

import (
	"errors"
	"path/filepath"

	"golang.org/x/sys/unix"

	spore "github.com/sporevm/spore"
)

// diskError gives an error about writing below dir its code. need is how many bytes were still to be written when it
// happened, or more; it tells the user how much is missing.
func diskError(err error, dir string, need int64) error {
	if err == nil || !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EDQUOT) {
		return err
	}
	return noSpace(dir, need, available(dir)).WithCause(err)
}

func noSpace(dir string, need, free int64) *spore.Error {
	missing := max(need-free, 1)
	return spore.Errorf(spore.CodeNoSpace, "the disk under %s is full: %d bytes are needed, %d are free, so %d are missing", dir, need, max(free, 0), missing).
		WithHint("free at least %d MiB on that disk, or point the data directory at a larger one", missing>>20+1)
}

// checkSpace refuses work that cannot fit, before it begins.
func checkSpace(dir string, need int64) error {
	if free := available(dir); free >= 0 && need > free {
		return noSpace(dir, need, free)
	}
	return nil
}

// available returns how many bytes this process may still write below dir, -1 if that cannot be told.
func available(dir string) int64 {
	var st unix.Statfs_t
	if err := unix.Statfs(filepath.Clean(dir), &st); err != nil {
		return -1
	}
	return int64(st.Bavail) * st.Bsize
}
