package agent

import (
	"crypto/rand"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
)

// stagedPrefix begins the names of files that are being written. Watchers do not report them.
const stagedPrefix = ".spore-upload-"

// staged is a file that is written aside and appears under its name only when it is complete.
type staged struct {
	file *os.File
	to   string
	done bool
}

func newStaged(to string) (*staged, error) {
	var random [8]byte
	rand.Read(random[:]) // never fails: crypto/rand ends the process instead
	aside := filepath.Join(filepath.Dir(to), stagedPrefix+hex.EncodeToString(random[:]))
	f, err := os.OpenFile(aside, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return nil, err
	}
	return &staged{file: f, to: to}, nil
}

func (s *staged) commit() error {
	info, err := s.file.Stat()
	if err != nil {
		return err
	}
	if err := os.Rename(s.file.Name(), s.to); err != nil {
		return err
	}
	s.done = true
	// Who watches the name has seen it appear; setting the length to what it is tells them that it was written to.
	if err := s.file.Truncate(info.Size()); err != nil {
		return err
	}
	return s.file.Close()
}

// discard removes what was not committed.
func (s *staged) discard() {
	if !s.done {
		os.Remove(s.file.Name())
	}
	s.file.Close() // a second time after commit, which is harmless
}

func isStaged(name string) bool { return strings.HasPrefix(filepath.Base(name), stagedPrefix) }
