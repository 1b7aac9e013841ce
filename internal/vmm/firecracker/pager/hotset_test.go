package pager_test

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/vmm/firecracker/pager"
)

// TestHotSet records what a guest touches, and keeps it.
func TestHotSet(t *testing.T) {
	f := newFrozen(t, 4*mib, 8)
	cfg := f.config()
	cfg.HotSet = filepath.Join(f.dir, "hot")
	cfg.Record = time.Hour
	h := f.start(t, cfg)
	v := f.vmm(t, cfg)
	for _, off := range []int64{3 * mib, 64 << 10, 2*mib + 4096, 0} {
		v.do(command{Op: "touch", Off: off})
	}
	hot, err := h.HotSet(t.Context())
	if err != nil || hot == nil || len(hot.Windows) == 0 || hot.Windows[0] != 3*mib || hot.Size != 4*mib {
		t.Fatalf("recorded %+v %v", hot, err)
	}
	v.end()
	soon(t, h.Done(), "the end")
	stop(t, h)
	cfg.Record = time.Millisecond
	f.start(t, cfg)
	v = f.vmm(t, cfg)
	v.do(command{Op: "touch", Off: mib})
	until(t, "the hot set is kept", func() bool {
		kept, err := pager.LoadHotSet(cfg.HotSet)
		if err != nil && spore.CodeOf(err) != spore.CodeNotFound {
			t.Fatal(err)
		}
		return err == nil && kept.Windows[0] == mib
	})
}

// TestPrefetch brings a hot set ahead of the faults, once the first page was touched.
func TestPrefetch(t *testing.T) {
	f := newFrozen(t, 4*mib, 8)
	cfg := f.config()
	cfg.HotSet = filepath.Join(f.dir, "hot")
	windows := []int64{3 * mib, 3*mib + 32<<10, 64 << 10, 2 * mib, mib + mib/2 - 32<<10, mib + mib/2}
	if err := (&pager.HotSet{Size: 4 * mib, Windows: windows}).Save(cfg.HotSet); err != nil {
		t.Fatal(err)
	}
	h := f.start(t, cfg)
	v := f.vmm(t, cfg)
	if s := stats(t, h); s.Prefetched != 0 {
		t.Errorf("prefetched before anything was touched: %+v", s)
	}
	v.do(command{Op: "remove", Off: 2 * mib, Len: 8192}) // never brought back, though it is hot
	clear(f.want[2*mib : 2*mib+8192])
	v.do(command{Op: "touch", Off: 3*mib + mib/2})
	until(t, "all is there", func() bool { return stats(t, h).Prefetched == int64(len(windows)*8-2) })
	until(t, "the fault is counted", func() bool { return stats(t, h).Faults == 1 })
	for _, off := range windows {
		if off != 2*mib {
			v.do(command{Op: "touch", Off: off})
		}
	}
	if after := stats(t, h).Faults; after != 1 {
		t.Errorf("%d faults for pages that are there", after-1)
	}
	same(t, v.memory(), f.want)
}

// TestNoHotSet: a hot set that is damaged, or another memory's, is said to be, and the guest's memory is right without.
func TestNoHotSet(t *testing.T) {
	for name, make := range map[string]func(path string) error{
		"damaged": func(path string) error { return os.WriteFile(path, []byte("rubbish"), 0o600) },
		"another": func(path string) error { return (&pager.HotSet{Size: 8 * mib, Windows: []int64{0}}).Save(path) },
	} {
		t.Run(name, func(t *testing.T) {
			f := newFrozen(t, mib, 8)
			cfg := f.config()
			cfg.HotSet = filepath.Join(f.dir, "hot")
			if err := make(cfg.HotSet); err != nil {
				t.Fatal(err)
			}
			h := f.start(t, cfg)
			v := f.vmm(t, cfg)
			same(t, v.memory(), f.want)
			if s := stats(t, h); s.HotSetError == "" || s.HotSet != 0 || s.Prefetched != 0 {
				t.Errorf("%+v", s)
			}
		})
	}
}
