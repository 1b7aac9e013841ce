package frozen

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/sporevm/spore"
)

// Options tune a Store. The zero value is fit for use.
type Options struct {
	// Log gets what could not be tidied up; slog.Default() when nil.
	Log *slog.Logger
	// MaxLayers is how many diff layers a chain may have before NeedsFlatten says so; 8 when 0.
	MaxLayers int
	// BufferLimit bounds the memory, in bytes, in which captures hold copied pages until they are written out; what
	// goes beyond it is held in a file in the staging area. 1 GiB when 0.
	BufferLimit int64
	// Hook, for tests, is called before each durable step with the step's name, from several goroutines.
	Hook func(step string)
}

// Store is one directory of frozen VMs. Its methods may be called from many goroutines, and several processes may have
// the same directory open.
type Store struct {
	dir      string
	opts     Options
	log      *slog.Logger
	verifier *Verifier
	buffers  *bufferPool
	order    sync.RWMutex // what the file "lock" is between processes, inside this one
}

const (
	dirManifests = "manifests"
	dirPieces    = "pieces"
	dirLeases    = "leases"
	dirPins      = "pins"
	dirStaging   = "staging"
	fileLock     = "lock"
	fileOwner    = "owner"
	fileData     = "data"
	fileStamp    = "stamp"
)

// Open opens the store in dir, which it creates if need be, and removes what writers that are no longer alive left in
// the staging area.
func Open(dir string, opts Options) (*Store, error) {
	if opts.MaxLayers == 0 {
		opts.MaxLayers = 8
	}
	if opts.BufferLimit == 0 {
		opts.BufferLimit = 1 << 30
	}
	if opts.Log == nil {
		opts.Log = slog.Default()
	}
	s := &Store{dir: dir, opts: opts, log: opts.Log, verifier: NewVerifier(), buffers: newBufferPool(opts.BufferLimit)}
	for _, sub := range []string{dirManifests, dirPieces, dirLeases, dirPins, dirStaging} {
		// Searchable by others, not readable: a hypervisor without privileges opens the pieces it was given by name.
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o711); err != nil {
			return nil, ioError("make the store", filepath.Dir(dir), 1<<20, err)
		}
	}
	if err := syncDir(dir); err != nil {
		return nil, err
	}
	if err := s.clearStaging(); err != nil {
		return nil, err
	}
	return s, nil
}

// Close releases what the store holds. Drafts and images that are still open stay usable.
func (s *Store) Close() error {
	s.buffers.drain()
	return nil
}

func (s *Store) path(parts ...string) string {
	return filepath.Join(append([]string{s.dir}, parts...)...)
}

func (s *Store) step(name string) {
	if s.opts.Hook != nil {
		s.opts.Hook(name)
	}
}

// publishing runs fn while nothing is swept; several may run at once. Calls must not nest.
func (s *Store) publishing(fn func() error) error {
	s.order.RLock()
	defer s.order.RUnlock()
	return s.locked(unix.LOCK_SH, fn)
}

// alone runs fn while nobody publishes, opens or sweeps, in any process.
func (s *Store) alone(fn func() error) error {
	s.order.Lock()
	defer s.order.Unlock()
	return s.locked(unix.LOCK_EX, fn)
}

func (s *Store) locked(how int, fn func() error) error {
	f, err := lockFile(s.path(fileLock), how)
	if err != nil {
		return ioError("lock the store", s.dir, 1, err)
	}
	defer f.Close()
	return fn()
}

// newDir makes a staging directory that belongs to this process as long as owner stays open.
func (s *Store) newDir() (dir string, owner *os.File, err error) {
	dir = s.path(dirStaging, randomHex(12))
	err = s.publishing(func() error { // or else Open could take it for abandoned before it is locked
		s.step("stage.dir")
		if err := os.Mkdir(dir, 0o711); err != nil {
			return err
		}
		s.step("stage.owner")
		owner, err = lockFile(filepath.Join(dir, fileOwner), unix.LOCK_EX|unix.LOCK_NB)
		return err
	})
	if err != nil {
		return "", nil, errors.Join(ioError("open a staging area", s.dir, 1<<16, err), os.RemoveAll(dir))
	}
	return dir, owner, nil
}

// clearStaging removes staging directories and leases whose owners are dead.
func (s *Store) clearStaging() error {
	var dead []string
	var owners []*os.File
	defer func() {
		for _, f := range owners {
			f.Close()
		}
	}()
	err := s.alone(func() error {
		staged, err := os.ReadDir(s.path(dirStaging))
		if err != nil {
			return err
		}
		for _, e := range staged {
			path := s.path(dirStaging, e.Name())
			if e.IsDir() {
				owner, err := lockFile(filepath.Join(path, fileOwner), unix.LOCK_EX|unix.LOCK_NB)
				if err == unix.EWOULDBLOCK {
					continue
				}
				if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOSPC) {
					return err
				}
				if owner != nil {
					owners = append(owners, owner)
				}
			}
			dead = append(dead, path) // single files live only while the store is locked: this one was left over
		}
		_, err = s.liveLeases()
		return err
	})
	if err != nil {
		return fmt.Errorf("clear the staging area: %w", err)
	}
	for _, path := range dead {
		if err := os.RemoveAll(path); err != nil {
			return fmt.Errorf("clear the staging area: %w", err)
		}
	}
	return nil
}

func randomHex(n int) string {
	b := make([]byte, n)
	rand.Read(b)
	return hex.EncodeToString(b)
}

// tidy reports that something could not be cleaned up; the next Open or sweep will do it.
func (s *Store) tidy(what string, err error) {
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.log.Warn("frozen store: could not clean up", "what", what, "err", err)
	}
}

func notFound(id string) *spore.Error {
	return spore.Errorf(spore.CodeNotFound, "there is no frozen VM %s", id)
}
