// Package trial keeps the place in which an engine boots a guest to see whether it can.
package trial

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// Place makes an empty directory for a trial boot: name in stateDir, or a temporary one if stateDir is empty. The name is the same
// each time, so that the guest of a server that died in its trial is found: clean ends what lives in a directory. Of two
// processes that try at once one waits. leave removes the directory.
func Place(ctx context.Context, stateDir, name string, clean func(ctx context.Context, dir string) error) (dir string, leave func() error, err error) {
	if stateDir == "" {
		if dir, err = os.MkdirTemp("", "spore-"+name+"-"); err != nil {
			return "", nil, err
		}
		return dir, func() error { return os.RemoveAll(dir) }, nil
	}
	if err := os.MkdirAll(stateDir, 0o700); err != nil {
		return "", nil, err
	}
	lock, err := os.Open(stateDir)
	if err != nil {
		return "", nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, lock.Close())
		}
	}()
	for {
		if err = unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err == nil {
			break
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return "", nil, fmt.Errorf("lock %s: %w", stateDir, err)
		}
		select {
		case <-ctx.Done():
			return "", nil, fmt.Errorf("another trial goes on: %w", ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
	dir = filepath.Join(stateDir, name)
	if err := clean(ctx, dir); err != nil {
		return "", nil, err
	}
	if err := os.RemoveAll(dir); err != nil {
		return "", nil, err
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return "", nil, err
	}
	return dir, func() error { return errors.Join(os.RemoveAll(dir), lock.Close()) }, nil
}
