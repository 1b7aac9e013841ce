package frozen

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/sporevm/spore"
)

// TestFlippedByte flips bytes all over each stored file of a snapshot over a template: opening or thawing is refused
// with the name of what is damaged, and fsck finds it too.
func TestFlippedByte(t *testing.T) {
	t.Parallel()
	s := openStoreIn(t, filepath.Join(tempDir(t), "frozen"), Options{})
	template(t, s, "tpl-1", 64)
	r := thaw(t, s, "tpl-1")
	for p := int64(10); p < 14; p++ {
		for i := range int64(16) { // not all alike, so that the frame is stored as it is
			r.vm.put(p*pageSize, []byte(randomHex(pageSize/2)))
			r.vm.page(40+i, 0)
		}
	}
	r.vm.page(20, 0)
	writeDisk(t, r.disk, 256, map[int64]byte{9: 9})
	m := r.snapshot(t, s, "snap-1")
	if len(m.Memory.Layers) != 1 || m.Disk == nil {
		t.Fatalf("manifest %+v", m)
	}
	files := map[string]string{s.path(dirManifests, "snap-1"): "manifest snap-1"}
	for _, p := range m.Pieces() {
		files[s.dataPath(p.ID)] = p.ID
		files[s.path(dirPieces, p.ID, fileStamp)] = p.ID
	}
	for path, name := range files {
		size := must[os.FileInfo](t)(os.Stat(path)).Size()
		for _, at := range positions(size) {
			flip(t, path, at)
			err := openAndRead(t, s, "snap-1")
			if code := spore.CodeOf(err); code != spore.CodeDamaged || !strings.Contains(err.Error(), name) {
				t.Errorf("%s with byte %d of %d flipped: %v (%s)", name, at, size, err, code)
			}
			if at%61 == 0 {
				report := must[*Report](t)(s.Check(t.Context(), true))
				if len(report.Problems) == 0 {
					t.Errorf("%s with byte %d of %d flipped: fsck finds nothing", name, at, size)
				}
			}
			flip(t, path, at)
		}
	}
	if err := openAndRead(t, s, "snap-1"); err != nil {
		t.Errorf("after all is put back: %v", err)
	}
	if report := must[*Report](t)(s.Check(t.Context(), true)); len(report.Problems) > 0 {
		t.Errorf("problems: %+v", report.Problems)
	}
}

// positions are all of a small file and some of a bigger one, its ends above all.
func positions(size int64) []int64 {
	var out []int64
	for at := int64(0); at < size; {
		out = append(out, at)
		switch {
		case at < 160 || at > size-160:
			at += 3
		case size < 2000:
			at += 11
		default:
			at += min(size/23, size-160-at) + 1
		}
	}
	return out
}

func flip(t testing.TB, path string, at int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var b [1]byte
	if _, err := f.ReadAt(b[:], at); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 0x10
	if _, err := f.WriteAt(b[:], at); err != nil {
		t.Fatal(err)
	}
}

// openAndRead does what a thaw does.
func openAndRead(t testing.TB, s *Store, id string) error {
	img, err := s.OpenImage(t.Context(), id)
	if err != nil {
		return err
	}
	defer img.Close()
	if img.VM.Patches != nil {
		if err := img.VM.Patches.Each(t.Context(), func(int64, []byte) error { return nil }); err != nil {
			return err
		}
	}
	dst := filepath.Join(s.dir, "..", "clone")
	err = img.CloneDisk(t.Context(), dst)
	if err == nil {
		return os.Remove(dst)
	}
	if _, serr := os.Stat(dst); serr == nil {
		t.Errorf("a clone is left after %v", err)
	}
	return err
}

func TestMismatchedPieces(t *testing.T) {
	s := openStore(t, Options{})
	template(t, s, "tpl-1", 64)
	r := thaw(t, s, "tpl-1")
	a := r.snapshot(t, s, "snap-a")
	b := r.snapshot(t, s, "snap-b")

	mixed := *a
	mixed.State = b.State
	_, err := s.OpenManifest(t.Context(), &mixed)
	if err == nil || !strings.Contains(err.Error(), a.Capture) || !strings.Contains(err.Error(), b.Capture) {
		t.Errorf("state of another capture in the manifest: %v", err)
	}

	// The same behind the manifest's back: one file put in the other's place.
	swap := func(what string) {
		x, y := s.path(dirPieces, a.State.ID, what), s.path(dirPieces, b.State.ID, what)
		for _, step := range [][2]string{{x, x + "~"}, {y, x}, {x + "~", y}} {
			if err := os.Rename(step[0], step[1]); err != nil {
				t.Fatal(err)
			}
		}
	}
	swap(fileData)
	_, err = s.OpenImage(t.Context(), "snap-a")
	wantCode(t, err, spore.CodeDamaged)
	if !strings.Contains(err.Error(), a.Capture) || !strings.Contains(err.Error(), b.Capture) {
		t.Errorf("data swapped: %v", err)
	}
	swap(fileStamp)
	_, err = s.OpenImage(t.Context(), "snap-a")
	wantCode(t, err, spore.CodeDamaged)
	swap(fileData)
	swap(fileStamp)
	if err := openAndRead(t, s, "snap-a"); err != nil {
		t.Error(err)
	}
}

func TestMissingPiece(t *testing.T) {
	s := openStore(t, Options{})
	m := template(t, s, "tpl-1", 64)
	if err := os.RemoveAll(s.path(dirPieces, m.State.ID)); err != nil {
		t.Fatal(err)
	}
	_, err := s.OpenImage(t.Context(), "tpl-1")
	wantCode(t, err, spore.CodeDamaged)
	if !strings.Contains(err.Error(), m.State.ID) {
		t.Errorf("%v does not name the piece", err)
	}
	report := must[*Report](t)(s.Check(t.Context(), false))
	if len(report.Problems) != 1 || report.Problems[0].Kind != ProblemMissing {
		t.Errorf("problems: %+v", report.Problems)
	}
}

func TestNewerFormat(t *testing.T) {
	s := openStore(t, Options{})
	m := template(t, s, "tpl-1", 64)
	doc := must[[]byte](t)(seal(whatManifest, Format+1, m))
	if err := os.WriteFile(s.path(dirManifests, "tpl-2"), doc, 0o644); err != nil {
		t.Fatal(err)
	}
	_, err := s.Manifest("tpl-2")
	wantCode(t, err, spore.CodeUnsupported)
	if hint := spore.AsError(err).Hint; !strings.Contains(hint, "upgrade") {
		t.Errorf("hint %q", hint)
	}
	entries := must[[]Entry](t)(s.List(t.Context()))
	if len(entries) != 2 || entries[0].Err != nil || entries[1].Err == nil || entries[1].ID != "tpl-2" {
		t.Errorf("list: %+v", entries)
	}
	// While there is something that cannot be read, nothing is swept.
	if err := s.Remove("tpl-1"); err != nil {
		t.Fatal(err)
	}
	plan := must[*SweepPlan](t)(s.PlanSweep(t.Context(), nil))
	if len(plan.Remove) != 0 || len(plan.Blocked) != 1 {
		t.Errorf("plan: %+v", plan)
	}
	_, err = plan.Execute(t.Context())
	wantCode(t, err, spore.CodeDamaged)
	if err := s.Remove("tpl-2"); err != nil {
		t.Fatal(err)
	}
	plan = must[*SweepPlan](t)(s.PlanSweep(t.Context(), nil))
	if len(plan.Remove) != 3 || len(plan.Blocked) != 0 {
		t.Errorf("plan: %+v", plan)
	}
}

func TestVerifier(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	write := func(content string) {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(strings.Repeat("spore", chunkSize))
	v := NewVerifier()
	ctx := t.Context()
	digest := must[string](t)(v.Admit(ctx, path))
	if got := v.remembered(path); got != digest {
		t.Errorf("remembers %q, not %q", got, digest)
	}
	if err := v.Verify(ctx, path, digest); err != nil {
		t.Error(err)
	}
	wantCode(t, v.Verify(ctx, path, "raw1:other"), spore.CodeDamaged)
	flip(t, path, 3*chunkSize+5)
	if v.remembered(path) != "" {
		t.Error("a changed file is still trusted")
	}
	wantCode(t, v.Verify(ctx, path, digest), spore.CodeDamaged)
	flip(t, path, 3*chunkSize+5)
	if err := v.Verify(ctx, path, digest); err != nil {
		t.Error(err)
	}
	var read atomic.Int64
	if err := v.Scrub(ctx, path, digest, func(n int64) { read.Add(n) }); err != nil || read.Load() != 5*chunkSize {
		t.Errorf("scrub: %v after %d bytes", err, read.Load())
	}
	flip(t, path+".seen", 60)
	if err := v.Verify(ctx, path, digest); err != nil { // a damaged memory is no memory
		t.Error(err)
	}
	if err := os.Truncate(path, chunkSize); err != nil {
		t.Fatal(err)
	}
	wantCode(t, v.Verify(ctx, path, digest), spore.CodeDamaged)
	os.Remove(path)
	wantCode(t, v.Verify(ctx, path, digest), spore.CodeNotFound)
	canceled, cancel := context.WithCancel(ctx)
	cancel()
	write("x")
	if _, err := v.Admit(canceled, path); err == nil {
		t.Error("admitted although canceled")
	}
}

func TestRawDigestIgnoresHoles(t *testing.T) {
	dir := t.TempDir()
	content := make([]byte, 5*chunkSize+pageSize)
	copy(content[2*chunkSize:], "data")
	full, sparse := filepath.Join(dir, "full"), filepath.Join(dir, "sparse")
	if err := os.WriteFile(full, content, 0o600); err != nil {
		t.Fatal(err)
	}
	f := must[*os.File](t)(os.Create(sparse))
	defer f.Close()
	if _, err := f.WriteAt([]byte("data"), 2*chunkSize); err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(int64(len(content))); err != nil {
		t.Fatal(err)
	}
	v := NewVerifier()
	a, b := must[string](t)(v.Admit(t.Context(), full)), must[string](t)(v.Admit(t.Context(), sparse))
	if a != b {
		t.Errorf("digests %s and %s", a, b)
	}
	g := must[*os.File](t)(os.OpenFile(full, os.O_RDWR, 0))
	defer g.Close()
	if err := punchZeros(t.Context(), g); err != nil {
		t.Fatal(err)
	}
	if c := must[string](t)(v.Admit(t.Context(), full)); c != a {
		t.Errorf("digest %s after punching", c)
	}
	if n := allocated(g); n > 2*chunkSize {
		t.Errorf("%d bytes are still allocated", n)
	}
	if _, err := io.Copy(io.Discard, g); err != nil {
		t.Error(err)
	}
}
