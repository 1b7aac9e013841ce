package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"io/fs"
	"net/url"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/pressly/goose/v3"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/store"
)

// firstForm makes a file as the first Spore would have left it.
func firstForm(t *testing.T, path string, statements ...string) {
	t.Helper()
	db, err := sql.Open("sqlite", address(path, url.Values{"_pragma": {"foreign_keys(1)"}}))
	if err != nil {
		t.Fatal(err)
	}
	db.SetMaxOpenConns(1)
	defer func() {
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
	}()
	files, err := fs.Sub(migrations, "migrations")
	if err != nil {
		t.Fatal(err)
	}
	provider, err := goose.NewProvider(goose.DialectSQLite3, db, files)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := provider.UpTo(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	for _, statement := range statements {
		if _, err := db.Exec(statement); err != nil {
			t.Fatalf("%s: %v", statement, err)
		}
	}
}

var firstRows = []string{
	`INSERT INTO templates VALUES ('tpl-1', 'python', 'template', 'READY', 'example.org/a', 'sha256:1', 'linux/amd64', 'rfs-1', 'krn-1',
		1, 'ff', 2, 1, 128, 64, '{"cmd":["sh"]}', '{}', '', '', 'n1', 0, '{"team":"a","tier":"1"}', 5, 6, '', 'job-1', 100, 200)`,
	`INSERT INTO templates VALUES ('snap-1', '', 'snapshot', 'READY', '', '', '', 'rfs-1', 'krn-1',
		0, '', 0, 1, 128, 64, '{}', '{}', 'tpl-1', 's1', 'n1', 1, '{}', 5, 6, '', 'job-2', 150, 200)`,
	`INSERT INTO sandboxes VALUES ('s1', 'RUNNING', '', 'tpl-1', 'n1', 1, 1, 128, 64, '{"who":"me"}', '{"A":"B"}', 0, '', 300, 300, 0, 'kill')`,
	`INSERT INTO jobs VALUES ('job-1', 'CREATE', 'template', 'tpl-1', '', 'READY', 'READY', 100, '{}', 1, '', 'null', NULL, NULL, 0, 1, 2, 3, 0)`,
	`INSERT INTO jobs VALUES ('job-2', 'FLATTEN', 'snapshot', 'snap-1', '', 'RUNNING', '', 0, '{}', 1, '', 'null', NULL, NULL, 0, 4, 5, 0, 7)`,
	`INSERT INTO job_log VALUES ('job-1', 1, 9, 'info', 'hello')`,
	`INSERT INTO runtime_refs VALUES (3, 'tpl-1', 's1', 'n1', 'memory_backing', 1, 'ACTIVE', '', 300, 0)`,
	`INSERT INTO replicas VALUES ('tpl-1', 'n1', 'READY', 'READY', 'rfs-1', 'job-1', '', 'krn-1', 'a1', 'k1', 'qemu', '7.2', 200)`,
	`INSERT INTO replicas VALUES ('snap-1', 'n1', 'FAILED', 'whatever', 'rfs-1', 'job-2', 'broke', '', '', '', '', '', 200)`,
	`INSERT INTO replays VALUES ('me', 'k', 'd', 's1', 1)`,
}

func TestMigrateFirstForm(t *testing.T) {
	path := filepath.Join(t.TempDir(), "spore.db")
	firstForm(t, path, firstRows...)
	opened, err := Open(t.Context(), path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	s := opened.(*Store)
	defer func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}()
	if err := s.Check(t.Context()); err != nil {
		t.Error(err)
	}
	moment := func(nanos int64) time.Time { return time.Unix(0, nanos).UTC() }
	err = s.View(t.Context(), func(tx store.Tx) error {
		var errs []error
		same := func(got any, err error) func(want any) {
			return func(want any) {
				t.Helper()
				errs = append(errs, err)
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("differs (-want +got):\n%s", diff)
				}
			}
		}
		template, err := tx.FindTemplate("python")
		same(template, err)(&spore.Template{
			ID: "tpl-1", Name: "python", Kind: spore.KindTemplate, Status: spore.TemplateReady,
			Image:      spore.Image{Reference: "example.org/a", Digest: "sha256:1", Platform: "linux/amd64"},
			ArtifactID: "rfs-1", KernelID: "krn-1", EgressCA: spore.EgressCA{Baked: true, Fingerprint: "ff", TargetsWritten: 2},
			Resources: spore.Resources{VCPUs: 1, MemoryMiB: 128, DiskMiB: 64}, Process: spore.Process{Cmd: []string{"sh"}},
			Version: spore.DefaultTemplateVersion, Engine: "qemu", StorageBackend: spore.StorageBackendLayers, Policy: spore.PolicyStrict,
			OriginNode: "n1", Labels: map[string]string{"team": "a", "tier": "1"}, MemoryBytes: 5, DiskBytes: 6, JobID: "job-1",
			CreatedAt: moment(100), UpdatedAt: moment(200),
		})
		list, _, err := tx.Templates(store.TemplateFilter{Labels: map[string]string{"tier": "1", "team": "a"}})
		same(list, err)([]*spore.Template{template})
		sandboxes, _, err := tx.Sandboxes(store.SandboxFilter{Labels: map[string]string{"who": "me"}})
		same(len(sandboxes), err)(1)
		refs, err := tx.Refs(store.RefFilter{SandboxID: "s1"})
		same(len(refs), err)(1)
		lines, err := tx.JobLog("job-1", 0, 0)
		same(len(lines), err)(1)
		active, err := tx.ActiveJob("snap-1")
		same(active, err)(&spore.Job{
			ID: "job-2", Operation: spore.OpFlatten, ResourceType: spore.KindSnapshot, ResourceID: "snap-1", Status: spore.JobRunning, AttemptNo: 1,
			CreatedAt: moment(4), StartedAt: moment(5),
		})
		replicas, _, err := tx.ReplicaPage(store.ReplicaFilter{NodeID: "n1"})
		same(replicas, err)([]*spore.Replica{
			{TemplateID: "snap-1", NodeID: "n1", Status: spore.ReplicaFailed, Phase: spore.ReplicaPhaseFailed, ArtifactID: "rfs-1", LastJobID: "job-2",
				ErrorMessage: "broke", UpdatedAt: moment(200)},
			{TemplateID: "tpl-1", NodeID: "n1", Status: spore.ReplicaReady, Phase: spore.ReplicaPhaseReady, ArtifactID: "rfs-1", LastJobID: "job-1",
				Bound:     spore.Components{GuestImage: "krn-1", Agent: "a1", Kernel: "k1", Engine: "qemu", StateFormat: "7.2"},
				UpdatedAt: moment(200)},
		})
		artifact, err := tx.Artifact("rfs-1")
		same(artifact, err)(&spore.Artifact{
			ID: "rfs-1", Status: spore.ArtifactFailed, Image: template.Image, Process: template.Process, EgressCA: template.EgressCA,
			LastError: "not verified since the upgrade", CreatedAt: moment(100), UpdatedAt: moment(200),
		})
		placements, err := tx.Placements("rfs-1", "")
		same(placements, err)([]spore.Placement{{ArtifactID: "rfs-1", NodeID: "n1", CreatedAt: moment(200)}})
		return errors.Join(errs...)
	})
	if err != nil {
		t.Fatal(err)
	}
	// Rules that tables were made anew for hold again.
	err = s.Update(t.Context(), func(tx store.Tx) error {
		return tx.InsertJob(&spore.Job{ID: "job-3", Operation: spore.OpReplicate, ResourceID: "snap-1", Status: spore.JobPending})
	})
	if err != nil {
		t.Error(err)
	}
	if _, err := s.writes.ExecContext(context.Background(), "DELETE FROM templates WHERE id = 'tpl-1'"); err == nil {
		t.Error("a template was deleted under the rows that refer to it")
	}
	if _, err := s.writes.ExecContext(context.Background(), "DELETE FROM jobs WHERE id = 'job-1'"); err != nil {
		t.Error(err)
	}
}

// A file that refers to what is not there is left as it was.
func TestMigrateDangling(t *testing.T) {
	path := filepath.Join(t.TempDir(), "spore.db")
	firstForm(t, path, append(firstRows, "PRAGMA foreign_keys = 0",
		`INSERT INTO job_log VALUES ('job-none', 1, 9, 'info', 'hello')`)...)
	if s, err := Open(t.Context(), path, Options{}); err == nil {
		t.Error("it was migrated", s.Close())
	}
	db, err := sql.Open("sqlite", address(path, url.Values{"_pragma": {"foreign_keys(1)"}}))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
	}()
	var version, replicas int
	if err := db.QueryRow("SELECT MAX(version_id), (SELECT COUNT(*) FROM replicas WHERE guest_image_version = 'krn-1') FROM goose_db_version").Scan(&version, &replicas); err != nil {
		t.Fatal(err)
	}
	if version != 1 || replicas != 1 {
		t.Errorf("version %d, %d replicas", version, replicas)
	}
}
