package pager

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/cespare/xxhash/v2"

	"github.com/sporevm/spore"
)

// window is the unit in which memory is brought: the aligned stretch around a page that is touched.
const window = 32 << 10

// maxHot bounds a hot set, in windows: 128 MiB.
const maxHot = 4096

// HotSet is the memory that a guest touches first after a thaw, in the order in which it did: offsets in RAM, each the
// start of a window of 32 KiB.
type HotSet struct {
	Size    int64 // of RAM
	Windows []int64
}

// The file of a hot set, all numbers little-endian:
//
//	 0  magic "SPOREHOT"    8  version, 4 bytes     12  size of a window, 4 bytes
//	16  size of RAM, 8     24  windows, 8 bytes
//	32  one number of 4 bytes for each window: its offset divided by the size of a window
//	 .  XXH64 of all before
const (
	hotMagic   = "SPOREHOT"
	hotVersion = 1
	hotHeader  = 32
	maxHotFile = hotHeader + 4*maxHot + 8
)

// append adds the hot set to b in the form of its file.
func (h *HotSet) append(b []byte) []byte {
	start := len(b)
	b = append(b, hotMagic...)
	b = binary.LittleEndian.AppendUint32(b, hotVersion)
	b = binary.LittleEndian.AppendUint32(b, window)
	b = binary.LittleEndian.AppendUint64(b, uint64(h.Size))
	b = binary.LittleEndian.AppendUint64(b, uint64(len(h.Windows)))
	for _, off := range h.Windows {
		b = binary.LittleEndian.AppendUint32(b, uint32(off/window))
	}
	return binary.LittleEndian.AppendUint64(b, xxhash.Sum64(b[start:]))
}

// parseHotSet reads the file of a hot set.
func parseHotSet(b []byte) (*HotSet, error) {
	if len(b) < hotHeader+8 || len(b) > maxHotFile {
		return nil, fmt.Errorf("a hot set of %d bytes cannot be", len(b))
	}
	body, sum := b[:len(b)-8], binary.LittleEndian.Uint64(b[len(b)-8:])
	if string(b[:8]) != hotMagic {
		return nil, errors.New("not a hot set")
	}
	if xxhash.Sum64(body) != sum {
		return nil, errors.New("checksum does not match")
	}
	if v, w := binary.LittleEndian.Uint32(b[8:]), binary.LittleEndian.Uint32(b[12:]); v != hotVersion || w != window {
		return nil, fmt.Errorf("version %d with windows of %d bytes is not known", v, w)
	}
	h := &HotSet{Size: int64(binary.LittleEndian.Uint64(b[16:]))}
	count := binary.LittleEndian.Uint64(b[24:])
	if h.Size <= 0 || count > maxHot || int(count)*4 != len(body)-hotHeader {
		return nil, fmt.Errorf("%d windows of %d bytes of memory do not fit the file", count, h.Size)
	}
	seen := make(map[int64]bool, count)
	for b := body[hotHeader:]; len(b) > 0; b = b[4:] {
		off := int64(binary.LittleEndian.Uint32(b)) * window
		if off >= h.Size || seen[off] {
			return nil, fmt.Errorf("window at %d is twice or outside of memory", off)
		}
		seen[off] = true
		h.Windows = append(h.Windows, off)
	}
	return h, nil
}

// readHotSet reads a hot set from an open file.
func readHotSet(r io.Reader) (*HotSet, error) {
	b, err := io.ReadAll(io.LimitReader(r, maxHotFile+1))
	if err != nil {
		return nil, err
	}
	return parseHotSet(b)
}

// LoadHotSet reads a hot set. It fails with spore.CodeNotFound and spore.CodeDamaged; neither need keep a VM from its thaw.
func LoadHotSet(path string) (*HotSet, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, spore.Errorf(spore.CodeNotFound, "there is no hot set %s", path).WithCause(err)
	}
	if err != nil {
		return nil, fmt.Errorf("pager: hot set: %w", err)
	}
	defer f.Close()
	h, err := readHotSet(f)
	if err != nil {
		return nil, spore.Errorf(spore.CodeDamaged, "the hot set %s is damaged: %v", path, err).WithCause(err).
			WithHint("remove it; another one is recorded at a later thaw")
	}
	return h, nil
}

// Save writes the hot set to path, whole or not at all.
func (h *HotSet) Save(path string) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), ".hot-*")
	if err != nil {
		return fmt.Errorf("pager: save hot set: %w", err)
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("pager: save hot set: %w", errors.Join(err, os.Remove(f.Name())))
		}
	}()
	_, err = f.Write(h.append(nil))
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// recorder notes the windows that are touched, in their order.
type recorder struct {
	seen    map[int64]bool
	windows []int64
}

func newRecorder() *recorder { return &recorder{seen: map[int64]bool{}} }

// note answers whether there is room for more.
func (r *recorder) note(off int64) bool {
	off -= off % window
	if len(r.windows) < maxHot && !r.seen[off] {
		r.seen[off] = true
		r.windows = append(r.windows, off)
	}
	return len(r.windows) < maxHot
}
