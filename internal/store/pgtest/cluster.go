// Package pgtest runs real PostgreSQL servers for tests: throwaway ones, reached through a socket in a directory of their
// own, that end with the process that started them.
package pgtest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Cluster is one server with databases of its own.
type Cluster struct {
	dir        string
	supervisor *exec.Cmd
	orders     io.WriteCloser
	answers    *bufio.Reader
	mu         sync.Mutex // one order at a time
}

// Options say how a cluster is run.
type Options struct {
	Durable bool // flush commits to the disk, which makes all slower; without it they outlive the server, but not the machine
}

// patience is how long a server may take to come up or down on a busy machine.
const patience = time.Minute

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
	url, err := share(t).create()
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
		c, err := start(Options{})
		if err != nil {
			t.Fatal(err)
		}
		shared.cluster = c
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
	if err := shared.cluster.close(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}

// New starts a cluster for one test, which may stop and crash it. It ends with the test.
func New(t testing.TB, opts Options) *Cluster {
	t.Helper()
	c, err := start(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// Dir is where the socket of the server is.
func (c *Cluster) Dir() string { return c.dir }

var databases atomic.Int64

// Database makes a new, empty database and answers its URL. It is dropped when the test ends, if the server runs then.
func (c *Cluster) Database(t testing.TB) (url string) {
	t.Helper()
	url, err := c.create()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		err := c.admin(context.Background(), "DROP DATABASE "+nameIn(url)+" WITH (FORCE)")
		var refused *pgconn.ConnectError
		if err != nil && !errors.As(err, &refused) {
			t.Errorf("drop the database: %v", err)
		}
	})
	return url
}

func (c *Cluster) create() (url string, err error) {
	name := fmt.Sprintf("test%d", databases.Add(1))
	if err := c.admin(context.Background(), "CREATE DATABASE "+name+" OWNER "+role); err != nil {
		return "", fmt.Errorf("make a database: %w", err)
	}
	return c.url(role, name), nil
}

// nameIn is the name of the database in a URL.
func nameIn(text string) string {
	u, err := url.Parse(text)
	if err != nil {
		return ""
	}
	return strings.TrimPrefix(u.Path, "/")
}

// Stop ends the server; sessions are told so. Nothing is lost.
func (c *Cluster) Stop(t testing.TB) { t.Helper(); c.must(t, "fast") }

// Crash ends the server as a crash would, in the middle of whatever it does.
func (c *Cluster) Crash(t testing.TB) { t.Helper(); c.must(t, "immediate") }

// Start starts the server again after Stop or Crash, and returns when it answers.
func (c *Cluster) Start(t testing.TB) {
	t.Helper()
	c.must(t, "start")
	if err := c.ready(); err != nil {
		t.Fatal(err)
	}
}

func (c *Cluster) must(t testing.TB, order string) {
	t.Helper()
	if err := c.order(order); err != nil {
		t.Fatal(err)
	}
}

// Exec runs a statement in a database, as its superuser.
func (c *Cluster) Exec(t testing.TB, database, statement string) {
	t.Helper()
	if err := run(context.Background(), c.url(superuser, nameIn(database)), statement); err != nil {
		t.Fatal(err)
	}
}

const (
	superuser = "postgres"
	role      = "spore"
)

func (c *Cluster) url(user, database string) string {
	return (&url.URL{Scheme: "postgres", User: url.User(user), Path: "/" + database, RawQuery: url.Values{"host": {c.dir}}.Encode()}).String()
}

func (c *Cluster) admin(ctx context.Context, statement string) error {
	return run(ctx, c.url(superuser, superuser), statement)
}

func run(ctx context.Context, url, statement string) (err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return err
	}
	_, err = conn.Exec(ctx, statement)
	return errors.Join(err, conn.Close(ctx))
}
