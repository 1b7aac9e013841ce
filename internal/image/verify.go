package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// fileState is what changes when somebody writes to a file, however quietly.
type fileState struct {
	Inode uint64 `json:"inode"`
	Size  int64  `json:"size"`
	MTime int64  `json:"mtimeNs"`
	CTime int64  `json:"ctimeNs"`
}

func stateOf(f *os.File) (fileState, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return fileState{}, fmt.Errorf("stat %s: %w", f.Name(), err)
	}
	return fileState{Inode: st.Ino, Size: st.Size, MTime: st.Mtim.Nano(), CTime: st.Ctim.Nano()}, nil
}

// Verify reads an artifact in full and compares it with its digest. It fails with CodeDamaged if they differ.
func (s *Store) Verify(ctx context.Context, id string) error {
	a, err := s.Get(id)
	if err != nil {
		return err
	}
	f, err := os.Open(a.Path)
	if err != nil {
		return artifactDamaged(id, "its file cannot be opened").WithCause(err)
	}
	defer f.Close()
	before, err := stateOf(f)
	if err != nil {
		return err
	}
	h := sha256.New()
	if _, err := io.CopyBuffer(h, ctxReader{ctx, f}, make([]byte, 1<<20)); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return artifactDamaged(id, "its file cannot be read").WithCause(err)
	}
	if got := "sha256:" + hex.EncodeToString(h.Sum(nil)); got != a.Digest {
		return artifactDamaged(id, fmt.Sprintf("its digest is %s instead of %s", got, a.Digest))
	}
	data, err := json.Marshal(before)
	if err != nil {
		return err
	}
	return s.writeFile(filepath.Join(s.artifactDir(id), verifiedFile), data)
}

// VerifyQuick trusts an artifact whose file looks untouched since it was last verified: same inode, size and times of
// change. Any other it verifies in full.
func (s *Store) VerifyQuick(ctx context.Context, id string) error {
	a, err := s.Get(id)
	if err != nil {
		return err
	}
	f, err := os.Open(a.Path)
	if err != nil {
		return artifactDamaged(id, "its file cannot be opened").WithCause(err)
	}
	defer f.Close()
	now, err := stateOf(f)
	if err != nil {
		return err
	}
	var then fileState
	data, err := os.ReadFile(filepath.Join(s.artifactDir(id), verifiedFile))
	if err == nil && json.Unmarshal(data, &then) == nil && then == now {
		return nil
	}
	return s.Verify(ctx, id)
}
