package image

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"

	spore "github.com/sporevm/spore"
)

func TestGetListRemove(t *testing.T) {
	s := openStore(t, Options{})
	ctx := context.Background()
	for _, id := range []string{"rfs-000000000000000000000000", "../../etc", "", "tpl-000000000000000000000000"} {
		if _, err := s.Get(id); spore.CodeOf(err) != spore.CodeNotFound {
			t.Errorf("Get(%q): %v", id, err)
		}
		if err := s.Remove(ctx, id); spore.CodeOf(err) != spore.CodeNotFound {
			t.Errorf("Remove(%q): %v", id, err)
		}
	}
	r := mustBuild(t, s, "oci:"+writeLayout(t, map[string]v1.Image{"": testImage(t, gzipLayer(t, testFiles{"a": "A"}.tar(t)))}), BuildOptions{})
	id := r.Artifact.ID
	if got, err := s.Get(id); err != nil || !reflect.DeepEqual(got, r.Artifact) {
		t.Errorf("Get: %+v, %v, want %+v", got, err, r.Artifact)
	}
	if got, err := s.List(); err != nil || len(got) != 1 || got[0].ID != id {
		t.Errorf("List: %v, %v", got, err)
	}
	if err := s.Verify(ctx, id); err != nil {
		t.Error(err)
	}
	if err := s.Remove(ctx, id); err != nil {
		t.Error(err)
	}
	if got, err := s.List(); err != nil || len(got) != 0 {
		t.Errorf("List: %v, %v", got, err)
	}
	if left := leftovers(t, s); len(left) > 0 {
		t.Errorf("left in tmp: %q", left)
	}
}

// rot flips one byte of a file and hides it as well as a file's owner can.
func rot(t *testing.T, path string) {
	t.Helper()
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, flip(data), 0); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(path, st.ModTime(), st.ModTime()); err != nil {
		t.Fatal(err)
	}
}

func TestDamagedArtifactIsNoticedAndBuiltAgain(t *testing.T) {
	ref := "oci:" + writeLayout(t, map[string]v1.Image{"": testImage(t, gzipLayer(t, testFiles{"a": "A"}.tar(t)))})
	ctx := context.Background()
	for name, damage := range map[string]func(*Artifact) error{
		"flipped byte": func(a *Artifact) error { rot(t, a.Path); return nil },
		"cut short":    func(a *Artifact) error { return os.Truncate(a.Path, 100) },
		"no file":      func(a *Artifact) error { return os.Remove(a.Path) },
		"no record":    func(a *Artifact) error { return os.Remove(filepath.Join(filepath.Dir(a.Path), recordFile)) },
		"bad record": func(a *Artifact) error {
			return os.WriteFile(filepath.Join(filepath.Dir(a.Path), recordFile), []byte("{"), 0o600)
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := openStore(t, Options{})
			a := mustBuild(t, s, ref, BuildOptions{}).Artifact
			if err := s.VerifyQuick(ctx, a.ID); err != nil {
				t.Fatal(err)
			}
			if err := damage(a); err != nil {
				t.Fatal(err)
			}
			if err := s.VerifyQuick(ctx, a.ID); spore.CodeOf(err) != spore.CodeDamaged {
				t.Errorf("VerifyQuick: %v", err)
			}
			if err := s.Verify(ctx, a.ID); spore.CodeOf(err) != spore.CodeDamaged {
				t.Errorf("Verify: %v", err)
			}
			r := mustBuild(t, s, ref, BuildOptions{})
			if r.Reused || r.Artifact.Digest != a.Digest {
				t.Errorf("rebuilt: %+v", r.Artifact)
			}
			if err := s.Verify(ctx, a.ID); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestUntouchedAfterCopyIsVerifiedInFull(t *testing.T) {
	s := openStore(t, Options{})
	a := mustBuild(t, s, "oci:"+writeLayout(t, map[string]v1.Image{"": testImage(t, gzipLayer(t, testFiles{"a": "A"}.tar(t)))}), BuildOptions{}).Artifact
	record := filepath.Join(filepath.Dir(a.Path), verifiedFile)
	before, err := os.ReadFile(record)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(a.Path, 0o400); err != nil { // moves the change time
		t.Fatal(err)
	}
	if err := s.VerifyQuick(context.Background(), a.ID); err != nil {
		t.Fatal(err)
	}
	after, err := os.ReadFile(record)
	if err != nil {
		t.Fatal(err)
	}
	if string(before) == string(after) {
		t.Error("the new state was not taken down")
	}
}

func TestRottenBlobIsFetchedAgain(t *testing.T) {
	img := testImage(t, gzipLayer(t, testFiles{"a": noise(7, 50_000)}.tar(t)))
	ref := "oci:" + writeLayout(t, map[string]v1.Image{"": img})
	s := openStore(t, Options{})
	ctx := context.Background()
	a := mustBuild(t, s, ref, BuildOptions{}).Artifact
	entries, err := os.ReadDir(s.blobs.dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		rot(t, filepath.Join(s.blobs.dir, e.Name()))
	}
	if err := s.Remove(ctx, a.ID); err != nil {
		t.Fatal(err)
	}
	if r := mustBuild(t, s, ref, BuildOptions{}); r.Artifact.Digest != a.Digest {
		t.Errorf("rebuilt: %+v", r.Artifact)
	}
}

func TestSweepBlobs(t *testing.T) {
	s := openStore(t, Options{})
	img := testImage(t, gzipLayer(t, testFiles{"a": noise(8, 50_000)}.tar(t)))
	ref := "oci:" + writeLayout(t, map[string]v1.Image{"": img})
	r := mustBuild(t, s, ref, BuildOptions{})
	records, err := s.Images(r.Artifact.ID)
	if err != nil {
		t.Fatal(err)
	}
	layer := records[0].Blobs[2]
	if freed, err := s.SweepBlobs(func(d string) bool { return d == layer }); err != nil || freed != 0 {
		t.Errorf("freed %d, %v", freed, err)
	}
	if freed, err := s.SweepBlobs(func(string) bool { return false }); err != nil || freed < 50_000 {
		t.Errorf("freed %d, %v", freed, err)
	}
	if entries, err := os.ReadDir(s.blobs.dir); err != nil || len(entries) != 2 {
		t.Errorf("left: %v, %v", entries, err)
	}
	if r := mustBuild(t, s, ref, BuildOptions{}); !r.Reused {
		t.Error("an unchanged image needed its layers")
	}
}

func TestSweepDuringBuild(t *testing.T) {
	s := openStore(t, Options{})
	ref := "oci:" + writeLayout(t, map[string]v1.Image{"": testImage(t, gzipLayer(t, testFiles{"a": noise(13, 50_000)}.tar(t)))})
	seen := map[Phase]bool{}
	mustBuild(t, s, ref, BuildOptions{Progress: func(p Progress) {
		if p.Phase == PhasePulling && p.LayersDone == 0 || seen[p.Phase] {
			return
		}
		seen[p.Phase] = true
		if _, err := s.SweepBlobs(func(string) bool { return false }); err != nil {
			t.Error(err)
		}
	}})
	if len(seen) != 3 {
		t.Errorf("swept in %v", seen)
	}
}

func TestOneBuildForManyCallers(t *testing.T) {
	s := openStore(t, Options{})
	other, err := Open(s.dir, Options{}) // as another process would
	if err != nil {
		t.Fatal(err)
	}
	ref := "oci:" + writeLayout(t, map[string]v1.Image{"": testImage(t, gzipLayer(t, testFiles{"a": noise(9, 200_000)}.tar(t)))})
	var wg sync.WaitGroup
	var mu sync.Mutex
	built := 0
	for i := range 8 {
		wg.Go(func() {
			store := s
			if i%2 == 1 {
				store = other
			}
			r, err := store.Build(context.Background(), ref, BuildOptions{})
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			if !r.Reused {
				built++
			}
		})
	}
	wg.Wait()
	if built != 1 {
		t.Errorf("%d builds", built)
	}
	if left := leftovers(t, s); len(left) > 0 {
		t.Errorf("left in tmp: %q", left)
	}
}

func TestSweepSparesTheLiving(t *testing.T) {
	s := openStore(t, Options{})
	f, err := createScratch(s.tmp(), scratchPrefix+"blob-*")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	unlock, err := s.lockArtifact(context.Background(), "rfs-000000000000000000000000")
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(s.tmp(), scratchPrefix+"rfs-000000000000000000000000")
	foreign := filepath.Join(s.tmp(), "of-another-part")
	orphan := filepath.Join(s.tmp(), scratchPrefix+"rfs-111111111111111111111111")
	for _, d := range []string{dir, foreign, filepath.Join(orphan, "x")} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Open(s.dir, Options{}); err != nil {
		t.Fatal(err)
	}
	for path, kept := range map[string]bool{f.Name(): true, dir: true, foreign: true, orphan: false} {
		if _, err := os.Stat(path); (err == nil) != kept {
			t.Errorf("%s: %v", path, err)
		}
	}
	unlock()
	f.Close()
	if err := s.Sweep(); err != nil {
		t.Fatal(err)
	}
	if left := leftovers(t, s); !reflect.DeepEqual(left, []string{"of-another-part"}) {
		t.Errorf("left in tmp: %q", left)
	}
}

// TestKilledBuild kills a process that builds, at many moments, and looks at what the next one finds.
func TestKilledBuild(t *testing.T) {
	if dir := os.Getenv("SPORE_TEST_BUILD_IN"); dir != "" {
		s, err := Open(dir, Options{})
		if err != nil {
			t.Fatal(err)
		}
		fmt.Println("started")
		mustBuild(t, s, os.Getenv("SPORE_TEST_REF"), BuildOptions{})
		return
	}
	files := testFiles{}
	for i := range 300 {
		files[fmt.Sprint("f", i)] = noise(uint64(i), 20_000)
	}
	img := testImage(t, gzipLayer(t, files.tar(t)), gzipLayer(t, testFiles{"a": "A"}.tar(t)))
	ref := "oci:" + writeLayout(t, map[string]v1.Image{"": img})
	clean := openStore(t, Options{})
	begin := time.Now()
	want := mustBuild(t, clean, ref, BuildOptions{}).Artifact
	took := time.Since(begin)

	dir := t.TempDir()
	r := rand.New(rand.NewPCG(3, 4))
	for range 12 {
		cmd := exec.Command(os.Args[0], "-test.run=^TestKilledBuild$")
		cmd.Env = append(os.Environ(), "SPORE_TEST_BUILD_IN="+dir, "SPORE_TEST_REF="+ref)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := out.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(r.Int64N(int64(took)))) // the moment of death is meant to be arbitrary
		if err := cmd.Process.Kill(); err != nil && !strings.Contains(err.Error(), "already finished") {
			t.Fatal(err)
		}
		_ = cmd.Wait() // it was killed

		s, err := Open(dir, Options{})
		if err != nil {
			t.Fatal(err)
		}
		if left := leftovers(t, s); len(left) > 0 {
			t.Errorf("left in tmp: %q", left)
		}
		all, err := s.List()
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range all {
			if err := s.Verify(context.Background(), a.ID); err != nil {
				t.Error(err)
			}
			if err := s.Remove(context.Background(), a.ID); err != nil {
				t.Error(err)
			}
		}
		if r.IntN(2) == 0 {
			if _, err := s.SweepBlobs(func(string) bool { return false }); err != nil {
				t.Error(err)
			}
		}
	}
	s, err := Open(dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if got := mustBuild(t, s, ref, BuildOptions{}).Artifact; got.Digest != want.Digest {
		t.Errorf("digest after the crashes: %s, want %s", got.Digest, want.Digest)
	}
}

// tinyDisk mounts a filesystem of limited size.
func tinyDisk(t *testing.T, size string) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); err != nil {
		t.Skipf("this machine mounts no tmpfs: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func TestDiskFull(t *testing.T) {
	zeros := testFiles{}
	for i := range 64 { // compresses to nothing, but does not become holes
		zeros[fmt.Sprint("f", i)] = strings.Repeat("all work and no play ", 6000)
	}
	for name, img := range map[string]v1.Image{
		"while pulling": testImage(t, gzipLayer(t, testFiles{"a": noise(10, 6<<20)}.tar(t))),
		"while writing": testImage(t, gzipLayer(t, zeros.tar(t))),
	} {
		t.Run(name, func(t *testing.T) {
			ref := "oci:" + writeLayout(t, map[string]v1.Image{"": img})
			s, err := Open(filepath.Join(tinyDisk(t, "4m"), "data"), Options{})
			if err != nil {
				t.Fatal(err)
			}
			refused(t, s, ref, BuildOptions{}, spore.CodeNoSpace, "bytes are needed", "are missing", "free at least")
		})
	}
	t.Run("late", func(t *testing.T) {
		dir := tinyDisk(t, "1m")
		b := &blobStore{dir: dir, tmp: dir}
		l := gzipLayer(t, testFiles{"a": noise(11, 3<<20)}.tar(t))
		digest, err := l.Digest()
		if err != nil {
			t.Fatal(err)
		}
		err = b.ensure(context.Background(), v1.Descriptor{Digest: digest, Size: -1}, "layer", l.Compressed, func(int64) {})
		if spore.CodeOf(err) != spore.CodeNoSpace {
			t.Errorf("error: %v", err)
		}
		if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
			t.Errorf("left: %v, %v", entries, err)
		}
	})
}
