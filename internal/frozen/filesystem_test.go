package frozen

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/vmm"
)

// mountFS makes a file system of its own and mounts it for the length of the test.
func mountFS(t testing.TB, kind string, mib int64, options ...string) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skipf("mounting %s needs root", kind)
	}
	if _, err := exec.LookPath("mkfs." + kind); err != nil {
		t.Skipf("there is no mkfs.%s", kind)
	}
	dir := t.TempDir()
	image, mount := filepath.Join(dir, "image"), filepath.Join(dir, "mnt")
	f := must[*os.File](t)(os.Create(image))
	if err := errors.Join(f.Truncate(mib<<20), f.Close(), os.Mkdir(mount, 0o755)); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mkfs."+kind, append(options, "-q", image)...).CombinedOutput(); err != nil {
		t.Fatalf("mkfs.%s: %v: %s", kind, err, out)
	}
	if out, err := exec.Command("mount", "-o", "loop", image, mount).CombinedOutput(); err != nil {
		t.Skipf("cannot mount %s here: %v: %s", kind, err, out)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", mount).CombinedOutput(); err != nil {
			t.Errorf("umount: %v: %s", err, out)
		}
	})
	return mount
}

var fileSystems = []struct {
	kind    string
	mib     int64
	options []string
	reflink bool
}{
	{"ext4", 64, []string{"-b", "1024"}, false},
	{"xfs", 320, []string{"-m", "reflink=1"}, true},
	{"btrfs", 160, nil, true},
}

func TestFileSystems(t *testing.T) {
	for _, fs := range fileSystems {
		t.Run(fs.kind, func(t *testing.T) {
			dir := mountFS(t, fs.kind, fs.mib, fs.options...)
			s := openStoreIn(t, filepath.Join(dir, "frozen"), Options{})
			template(t, s, "tpl-1", 512)
			r := thaw(t, s, "tpl-1")
			for i := range 6 {
				for range 20 {
					r.vm.page(rand.Int64N(512), byte(rand.IntN(3)))
				}
				writeDisk(t, r.disk, 256, map[int64]byte{rand.Int64N(256): byte(rand.IntN(3)), rand.Int64N(256): 0})
				if i == 2 { // a discard
					f := must[*os.File](t)(os.OpenFile(r.disk, os.O_RDWR, 0))
					if err := punch(f, rangeOf(96, 10)); err != nil {
						t.Fatal(err)
					}
					f.Close()
				}
				id := fmt.Sprintf("snap-%d", i)
				r.parent = r.snapshot(t, s, id)
				r.expect(t, s, id)
				if whole := len(r.parent.Disk.Layers) == 0; whole != fs.reflink {
					t.Errorf("%s: a whole disk is kept: %v, want %v", id, whole, fs.reflink)
				}
				x := must[*Explanation](t)(s.Explain(t.Context(), id, nil))
				if x.Reclaimable > x.Exclusive || x.Exclusive == 0 {
					t.Errorf("%s: %d bytes reclaimable of %d exclusive", id, x.Reclaimable, x.Exclusive)
				}
				shared := int64(0)
				for _, h := range x.Pieces {
					shared += h.Reflink
				}
				if (shared > 0) != fs.reflink {
					t.Errorf("%s: %d bytes are shared by reflink", id, shared)
				}
			}
			compareWhole(t, s, "snap-1", "snap-5", fs.reflink)
			must[*Manifest](t)(s.Flatten(t.Context(), "snap-5", FlattenOptions{}))
			r.expect(t, s, "snap-5")
			must[*Manifest](t)(s.Flatten(t.Context(), "snap-5", FlattenOptions{ToBase: true}))
			r.expect(t, s, "snap-5")
			must[int64](t)(must[*SweepPlan](t)(s.PlanSweep(t.Context(), nil)).Execute(t.Context()))
			if report := must[*Report](t)(s.Check(t.Context(), true)); len(report.Problems) > 0 {
				t.Errorf("problems: %+v", report.Problems)
			}
		})
	}
}

// compareWhole holds the difference of two disks against their bytes. What they share on the disk is not read.
func compareWhole(t *testing.T, s *Store, from, to string, reflink bool) {
	t.Helper()
	x, y := must[*Image](t)(s.OpenImage(t.Context(), from)), must[*Image](t)(s.OpenImage(t.Context(), to))
	defer x.Close()
	defer y.Close()
	a, b := make([]byte, x.Manifest.Disk.Size), make([]byte, y.Manifest.Disk.Size)
	if err := errors.Join(readFull(x.Disk(), a, 0), readFull(y.Disk(), b, 0)); err != nil {
		t.Fatal(err)
	}
	got := must[*Difference](t)(Compare(t.Context(), x, y))
	if want := totalLength(differing(a, b)); got.DiskBytes != want {
		t.Errorf("%d bytes of the disk differ, it says %d", want, got.DiskBytes)
	}
	if !reflink {
		return
	}
	read := must[[]vmm.Range](t)(basesDiffer(x.disk.base.(*os.File), y.disk.base.(*os.File)))
	if data := must[[]vmm.Range](t)(dataExtents(y.disk.base.(*os.File))); totalLength(read) >= totalLength(data) {
		t.Errorf("%d bytes of the disk are read of %d", totalLength(read), totalLength(data))
	}
}

// TestDiskFull fills the host's disk in each part of a capture: it is refused with CodeNoSpace, the VM goes on, and
// nothing is left behind.
func TestDiskFull(t *testing.T) {
	for _, fs := range fileSystems {
		t.Run(fs.kind, func(t *testing.T) {
			dir := mountFS(t, fs.kind, fs.mib, fs.options...)
			s := openStoreIn(t, filepath.Join(dir, "frozen"), Options{})
			template(t, s, "tpl-1", 4096)
			r := thaw(t, s, "tpl-1")
			for p := range int64(4000) {
				r.vm.put(p*pageSize, []byte(randomHex(pageSize/2)))
			}
			for b := range int64(200) {
				writeDisk(t, r.disk, 256, map[int64]byte{b: byte(b)})
			}
			ballast := filepath.Join(dir, "ballast")
			fill(t, ballast, 6<<20)
			d, err := s.Begin(t.Context(), Spec{ID: "snap-1", Kind: KindSnapshot, Shape: shape, Parent: r.parent})
			if err == nil { // btrfs may already have no room for names
				if _, err = d.CaptureLive(t.Context(), r.vm, r.disk, Resume); err == nil {
					_, err = d.Commit(t.Context())
				}
				d.Discard()
			}
			wantCode(t, err, spore.CodeNoSpace)
			t.Log(err)
			if r.vm.State() != "running" {
				t.Errorf("the VM is %s", r.vm.State())
			}
			if staged := must[[]os.DirEntry](t)(os.ReadDir(s.path(dirStaging))); len(staged) > 0 {
				t.Errorf("left in staging: %v", staged)
			}
			if plan := must[*SweepPlan](t)(s.PlanSweep(t.Context(), nil)); len(plan.Remove) > 0 {
				t.Errorf("left over: %v", plan.Remove)
			}
			if err := os.Remove(ballast); err != nil {
				t.Fatal(err)
			}
			if err := exec.Command("sync", "-f", dir).Run(); err != nil {
				t.Fatal(err)
			}
			r.snapshot(t, s, "snap-1")
			r.expect(t, s, "snap-1")
		})
	}
}

// TestSweepOnFullDisk sweeps where there is no room for so much as a directory: making room must not need room.
func TestSweepOnFullDisk(t *testing.T) {
	for _, fs := range fileSystems[:2] {
		t.Run(fs.kind, func(t *testing.T) {
			dir := mountFS(t, fs.kind, fs.mib, fs.options...)
			s := openStoreIn(t, filepath.Join(dir, "frozen"), Options{})
			template(t, s, "tpl-1", 4096)
			if err := s.Remove("tpl-1"); err != nil {
				t.Fatal(err)
			}
			fill(t, filepath.Join(dir, "ballast"), 0)
			for n := 0; os.Mkdir(filepath.Join(dir, fmt.Sprintf("ballast-%d", n)), 0o700) == nil; n++ {
			}
			plan := must[*SweepPlan](t)(s.PlanSweep(t.Context(), nil))
			if freed := must[int64](t)(plan.Execute(t.Context())); freed == 0 {
				t.Error("nothing was freed")
			}
			if report := must[*Report](t)(s.Check(t.Context(), true)); len(report.Problems) > 0 || report.Pieces > 0 {
				t.Errorf("report %+v", report)
			}
		})
	}
}

// fill takes all but about leave bytes of the file system.
func fill(t testing.TB, path string, leave int64) {
	t.Helper()
	f := must[*os.File](t)(os.Create(path))
	defer f.Close()
	buf := make([]byte, 1<<18)
	var n int64
	for {
		if free := must[int64](t)(freeBytes(filepath.Dir(path))); free <= leave {
			break
		}
		for i := range buf {
			buf[i] = byte(n) + byte(i*i)
		}
		w, err := f.Write(buf)
		n += int64(w)
		if err != nil {
			break
		}
		if n%(4<<20) == 0 {
			if f.Sync() != nil {
				break
			}
		}
	}
	if err := f.Sync(); err != nil {
		t.Log("sync:", err)
	}
}
