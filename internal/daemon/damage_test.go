package daemon_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/api"
)

// TestFlippedByte damages stored pieces of every kind, those of a template and those of snapshots: what stands on one is refused
// with its name, fsck finds it, and what does not stand on it goes on. When it is whole again, so is what stands on it.
func TestFlippedByte(t *testing.T) {
	t.Parallel()
	srv := start(t, serving{Config: daemonConfig(t)})
	srv.installKernel(t)
	base := srv.build(t, "busybox", "busybox")
	sb := srv.create(t, "busybox")
	// One start from each snapshot, since what does not start because of damage counts as lost until it was looked at again.
	type victim struct{ piece, snapshot string }
	var victims []victim
	for _, of := range append(srv.piecesOf(t, base.ID), "dly-", "mly-", "sta-") {
		srv.sh(t, sb.ID, "head -c 3000000 /dev/urandom > /root/noise; sync")
		before := strings.Join(srv.pieces(t), " ")
		snap, err := srv.CreateSnapshot(t.Context(), sb.ID, api.SnapshotRequest{})
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range srv.piecesOf(t, snap.ID) {
			if strings.HasPrefix(name, of) && strings.HasSuffix(of, "-") && !strings.Contains(before, name) {
				of = name
			}
		}
		if strings.HasSuffix(of, "-") {
			t.Fatalf("%s has no piece %s of its own", snap.ID, of)
		}
		victims = append(victims, victim{of, snap.ID})
	}
	srv.kill(t, sb.ID) // it maps the base memory, and would live with the damage
	refused := ""
	for _, v := range victims {
		t.Run(v.piece, func(t *testing.T) {
			piece := filepath.Join(srv.dir, "frozen", "pieces", v.piece, "data")
			st, err := os.Stat(piece)
			if err != nil {
				t.Fatal(err)
			}
			flip(t, piece, st.Size()/2)
			defer flip(t, piece, st.Size()/2)
			report, err := srv.Check(t.Context(), true, nil)
			if err != nil {
				t.Fatal(err)
			}
			if !named(report.Problems, v.piece) {
				t.Errorf("fsck did not find it: %v", report.Problems)
			}
			_, err = srv.CreateSandbox(t.Context(), api.CreateRequest{Template: v.snapshot})
			if strings.HasPrefix(v.piece, "dsk-") || strings.HasPrefix(v.piece, "dly-") || err != nil {
				wantCode(t, err, spore.CodeDamaged, v.piece)
				refused = v.snapshot
			}
		})
	}
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(100 * time.Millisecond) { // nothing is held against what is whole again
		snap, err := srv.GetSnapshot(t.Context(), refused)
		if err != nil {
			t.Fatal(err)
		}
		if snap.Status == spore.TemplateReady {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the snapshot is %s (%s)", snap.Status, snap.LastError)
		}
	}
	srv.sh(t, srv.create(t, refused).ID, "test -s /root/noise")
	srv.clean(t)
}

// pieces lists the names of all stored pieces.
func (s *server) pieces(t *testing.T) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(s.dir, "frozen", "pieces"))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// piecesOf lists the pieces that a template or snapshot consists of.
func (s *server) piecesOf(t *testing.T, id string) (names []string) {
	t.Helper()
	manifest, err := os.ReadFile(filepath.Join(s.dir, "frozen", "manifests", id))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range s.pieces(t) {
		if strings.Contains(string(manifest), name) {
			names = append(names, name)
		}
	}
	return names
}

// named says whether a problem is about name.
func named(problems []api.CheckProblem, name string) bool {
	for _, p := range problems {
		if strings.Contains(p.Object+" "+p.Detail, name) {
			return true
		}
	}
	return false
}
