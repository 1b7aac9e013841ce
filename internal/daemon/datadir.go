package daemon

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/sporevm/spore"
)

// layoutVersion is the version of the data directory's layout. A newer one is refused; an older one would be migrated.
const layoutVersion = 1

// dataDir is a data directory that this process alone has open.
type dataDir struct {
	path string
	lock *os.File
}

// openDataDir makes the directory if need be, locks it, and checks that this binary understands it.
func openDataDir(path string) (*dataDir, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, spore.Invalidf("data", "the data directory cannot be made: %v", err)
	}
	lock, err := os.OpenFile(filepath.Join(path, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, spore.Invalidf("data", "the data directory cannot be used: %v", err)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		pid, _ := os.ReadFile(lock.Name()) // for the message alone
		lock.Close()
		return nil, spore.Errorf(spore.CodeConflict, "the data directory %s is in use by another server (pid %s)", path, bytes.TrimSpace(pid)).
			WithHint("stop that one, or serve another directory with --data")
	}
	d := &dataDir{path: path, lock: lock}
	if err := d.checkVersion(); err != nil {
		d.Close()
		return nil, err
	}
	err = lock.Truncate(0)
	if err == nil {
		_, err = lock.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
	if err != nil {
		d.Close()
		return nil, err
	}
	return d, nil
}

// checkVersion refuses a directory of a newer layout, before anything in it is touched.
func (d *dataDir) checkVersion() error {
	file := filepath.Join(d.path, "VERSION")
	raw, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return writeFile(file, []byte(fmt.Sprintf("%d\n", layoutVersion)))
	}
	if err != nil {
		return err
	}
	v, err := strconv.Atoi(strings.TrimSpace(string(raw)))
	switch {
	case err != nil:
		return spore.Errorf(spore.CodeDamaged, "%s does not hold a version", file)
	case v > layoutVersion:
		return spore.Errorf(spore.CodeConflict, "the data directory is of layout %d; this spore knows up to %d", v, layoutVersion).
			WithHint("use the newer spore that wrote it")
	}
	return nil
}

// writeFile writes a file in one durable step.
func writeFile(path string, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // gone already when all went well
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// Close gives the directory free for another server.
func (d *dataDir) Close() error { return d.lock.Close() }

func (d *dataDir) join(elem ...string) string {
	return filepath.Join(append([]string{d.path}, elem...)...)
}
