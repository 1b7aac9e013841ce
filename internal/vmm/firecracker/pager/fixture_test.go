package pager_test

import (
	"bytes"
	"context"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/sporevm/spore/internal/vmm/firecracker/pager"
)

const mib = 1 << 20

// patches are pages in the order in which they are applied.
type patches []struct {
	off  int64
	data []byte
}

func (p patches) Each(ctx context.Context, fn func(int64, []byte) error) error {
	for _, x := range p {
		if err := fn(x.off, x.data); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// frozenVM is a memory on disk, and what it shows.
type frozenVM struct {
	dir     string
	base    string
	want    []byte
	patches patches
}

// newFrozen makes a memory of pages that are data, zeros and holes by chance, and patches over it.
func newFrozen(t testing.TB, size int64, seed uint64) *frozenVM {
	t.Helper()
	dir, err := os.MkdirTemp("", "pager-") // short, for sockets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	rnd := rand.New(rand.NewPCG(seed, 1))
	f := &frozenVM{dir: dir, base: filepath.Join(dir, "base"), want: make([]byte, size)}
	file, err := os.Create(f.base)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if err := file.Truncate(size); err != nil {
		t.Fatal(err)
	}
	for off := int64(0); off < size; {
		n := min(int64(1+rnd.IntN(20))*4096, size-off)
		part := f.want[off : off+n]
		switch rnd.IntN(3) {
		case 0: // a hole
			off += n
			continue
		case 1:
			random(rnd, part)
		} // else zeros that are written
		if _, err := file.WriteAt(part, off); err != nil {
			t.Fatal(err)
		}
		off += n
	}
	for range 30 {
		off := rnd.Int64N(size/4096) * 4096
		data := make([]byte, min(int64(1+rnd.IntN(20))*4096, size-off))
		if rnd.IntN(3) > 0 {
			random(rnd, data)
		}
		f.patches = append(f.patches, struct {
			off  int64
			data []byte
		}{off, data})
		copy(f.want[off:], data)
	}
	return f
}

func random(rnd *rand.Rand, b []byte) {
	for i := range b {
		b[i] = byte(rnd.Uint32())
	}
}

func (f *frozenVM) config() pager.Config {
	return pager.Config{ID: "s0123", Dir: f.dir, Socket: filepath.Join(f.dir, "uffd.sock"), UID: os.Getuid(), GID: os.Getgid()}
}

func (f *frozenVM) start(t testing.TB, cfg pager.Config) *pager.Handle {
	t.Helper()
	spec, err := pager.NewSpec(t.Context(), f.base, int64(len(f.want)), f.patches, f.dir)
	if err != nil {
		t.Fatal(err)
	}
	defer spec.Close()
	h, err := pager.Start(t.Context(), cfg, spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stop(t, h) })
	return h
}

// until waits for something that comes by itself.
func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: still not after a minute", what)
		}
	}
}

func stop(t testing.TB, h *pager.Handle) {
	t.Helper()
	if err := h.Stop(context.Background()); err != nil {
		t.Errorf("stop: %v", err)
	}
}

// regions are RAM in two parts, as a VMM with a hole for devices has it.
func (f *frozenVM) regions() []vmmRegion {
	half := int64(len(f.want)) / 8 * 3 &^ 4095
	return []vmmRegion{{Size: half, Page: 4096}, {Size: int64(len(f.want)) - half, Off: half, Page: 4096}}
}

func (f *frozenVM) vmm(t testing.TB, cfg pager.Config) *vmmProcess {
	t.Helper()
	return startVMM(t, vmmConfig{Socket: cfg.Socket, Regions: f.regions()})
}

func same(t testing.TB, got, want []byte) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%d bytes, not %d", len(got), len(want))
	}
	for i := 0; i < len(got); i += 4096 {
		if !bytes.Equal(got[i:i+4096], want[i:i+4096]) {
			t.Fatalf("page %d of %d differs", i/4096, len(got)/4096)
		}
	}
}

func stats(t testing.TB, h *pager.Handle) pager.Stats {
	t.Helper()
	s, err := h.Stats(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return s
}
