package daemon_test

import (
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/api"
	"github.com/sporevm/spore/internal/store/pgtest"
)

// onPostgres is how to serve with rows in a PostgreSQL database.
func onPostgres(t *testing.T, url string) serving {
	t.Helper()
	cfg := daemonConfig(t)
	cfg.DatabaseFile = filepath.Join(t.TempDir(), "database")
	if err := os.WriteFile(cfg.DatabaseFile, []byte(url), 0o600); err != nil {
		t.Fatal(err)
	}
	return serving{Config: cfg}
}

// TestDatabaseGoesAway stops the database under a server: requests are refused by name until it is back, and then answered by
// the same server.
func TestDatabaseGoesAway(t *testing.T) {
	t.Parallel()
	cluster := pgtest.New(t, pgtest.Options{})
	cfg := onPostgres(t, cluster.Database(t))
	cfg.Engine = "sim"
	srv := start(t, cfg)
	if _, err := srv.ListNodes(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	cluster.Stop(t)
	_, reading := srv.GetTemplate(t.Context(), "base")
	_, writing := srv.BuildTemplate(t.Context(), api.BuildRequest{Name: "base", Image: "registry.test/base:1", MemoryMiB: 128, DiskMiB: 64})
	for _, err := range []error{reading, writing} {
		if e := spore.AsError(err); err == nil || e.Code != spore.CodeUnreachable || e.Reason != spore.ReasonStoreUnavailable || e.Hint == "" {
			t.Errorf("without its database the server answers %v (%+v)", err, e)
		}
		wantCode(t, err, spore.CodeUnreachable, "database", "PostgreSQL")
	}
	res, err := http.Get(srv.URL() + "/v1/templates/base")
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != http.StatusServiceUnavailable || res.Header.Get("Retry-After") == "" {
		t.Errorf("without its database the server answers %s, %v", res.Status, res.Header)
	}
	cluster.Start(t)
	_, err = srv.GetTemplate(t.Context(), "base")
	wantCode(t, err, spore.CodeNotFound, "base")
	if _, err := srv.ListNodes(t.Context(), false); err != nil {
		t.Errorf("with its database back: %v", err)
	}
}
