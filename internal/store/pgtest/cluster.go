// Package pgtest runs real PostgreSQL servers for tests: throwaway ones, reached through a socket in a directory of their
// own, that end with the process that started them.
package pgtest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/sporevm/spore/internal/store/pgcluster"
)

// Cluster is one server with databases of its own.
type Cluster struct{ server *pgcluster.Cluster }

// Options say how a cluster is run.
type Options = pgcluster.Options

var shared struct {
	sync.Mutex
	cluster *Cluster
}

// Start answers the URL of a new, empty database on the cluster of this process, which is started at the first call. The
// database belongs to the role of the URL, which is no superuser. It is dropped when the test ends.
func Start(t testing.TB) (url string) {
	t.Helper()
	return share(t).Database(t)
}

// Lasting is Start for a database that lasts until the process ends: to empty one takes less time than to make one.
func Lasting(t testing.TB) (url string) {
	t.Helper()
	url, err := share(t).server.Create(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return url
}

func share(t testing.TB) *Cluster {
	t.Helper()
	shared.Lock()
	defer shared.Unlock()
	if shared.cluster == nil {
		server, err := pgcluster.Start(Options{})
		if err != nil {
			t.Fatal(err)
		}
		shared.cluster = &Cluster{server}
	}
	return shared.cluster
}

// Main runs the tests of a package and ends the cluster of this process. Without it the cluster ends too, but a moment after
// the process.
func Main(m *testing.M) (code int) {
	code = m.Run()
	shared.Lock()
	defer shared.Unlock()
	if shared.cluster == nil {
		return code
	}
	if err := shared.cluster.server.Close(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}

// New starts a cluster for one test, which may stop and crash it. It ends with the test.
func New(t testing.TB, opts Options) *Cluster {
	t.Helper()
	server, err := pgcluster.Start(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Close(); err != nil {
			t.Error(err)
		}
	})
	return &Cluster{server}
}

// Dir is where the socket of the server is.
func (c *Cluster) Dir() string { return c.server.Dir() }

// Database makes a new, empty database and answers its URL. It is dropped when the test ends, if the server runs then.
func (c *Cluster) Database(t testing.TB) (url string) {
	t.Helper()
	url, err := c.server.Create(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		err := c.server.Drop(context.Background(), url)
		var refused *pgconn.ConnectError
		if err != nil && !errors.As(err, &refused) {
			t.Errorf("drop the database: %v", err)
		}
	})
	return url
}

// Stop ends the server; sessions are told so. Nothing is lost.
func (c *Cluster) Stop(t testing.TB) { t.Helper(); must(t, c.server.Stop()) }

// Crash ends the server as a crash would, in the middle of whatever it does.
func (c *Cluster) Crash(t testing.TB) { t.Helper(); must(t, c.server.Crash()) }

// Start starts the server again after Stop or Crash, and returns when it answers.
func (c *Cluster) Start(t testing.TB) { t.Helper(); must(t, c.server.Restart()) }

// Exec runs a statement in a database, as its superuser.
func (c *Cluster) Exec(t testing.TB, database, statement string) {
	t.Helper()
	must(t, c.server.Exec(context.Background(), database, statement))
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
