package frozen

import (
	"context"
	"errors"
	"os"
)

// Kept answers how many bytes, as allocated on the disk, the pieces of m's own capture take up: what it keeps beyond
// its parent.
func (s *Store) Kept(m *Manifest) (memory, disk int64, err error) {
	if p := m.Memory.Top(); p.Capture == m.Capture {
		if memory, err = allocatedBytes(s.dataPath(p.ID)); err != nil {
			return 0, 0, err
		}
	}
	if m.Disk != nil && m.Disk.Top().Capture == m.Capture {
		disk, err = allocatedBytes(s.dataPath(m.Disk.Top().ID))
	}
	return memory, disk, err
}

// CloneFile makes dst, which must not exist, a copy of the file src: by sharing its blocks where the filesystem can,
// else by copying what is allocated. On error dst is not left behind.
func CloneFile(ctx context.Context, dst, src string) (err error) {
	from, err := os.Open(src)
	if err != nil {
		return err
	}
	defer from.Close()
	to, err := os.OpenFile(dst, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err = errors.Join(err, to.Close()); err != nil {
			err = errors.Join(err, os.Remove(dst))
		}
	}()
	_, err = cloneFile(ctx, to, from)
	return err
}
