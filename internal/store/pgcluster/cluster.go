// Package pgcluster runs throwaway PostgreSQL servers, reached through a socket in a directory of their own, that end with the
// process that started them.
package pgcluster

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
)

// Cluster is one server with databases of its own. Its methods may be called from many goroutines.
type Cluster struct {
	dir        string
	supervisor *exec.Cmd
	orders     io.WriteCloser
	answers    *bufio.Reader
	mu         sync.Mutex   // one order at a time
	late       <-chan error // the answer to an order that was given up, which comes before any other; nil: there is none
	databases  atomic.Int64
}

// Options say how a cluster is run.
type Options struct {
	Durable bool // flush commits to the disk, which makes all slower; without it they outlive the server, but not the machine
}

// patience is how long a server may take to come up or down on a busy machine.
const patience = time.Minute

const (
	superuser = "postgres"
	role      = "spore"
)

// Dir is where the socket of the server is.
func (c *Cluster) Dir() string { return c.dir }

// Create makes a new, empty database and answers its URL. It belongs to the role of the URL, which is no superuser.
func (c *Cluster) Create(ctx context.Context) (url string, err error) {
	name := fmt.Sprintf("db%d", c.databases.Add(1))
	if err := c.admin(ctx, "CREATE DATABASE "+name+" OWNER "+role); err != nil {
		return "", fmt.Errorf("make a database: %w", err)
	}
	return c.url(role, name), nil
}

// Drop removes a database that Create has made, whoever uses it.
func (c *Cluster) Drop(ctx context.Context, url string) error {
	return c.admin(ctx, "DROP DATABASE "+nameIn(url)+" WITH (FORCE)")
}

// Exec runs a statement in a database, as its superuser.
func (c *Cluster) Exec(ctx context.Context, url, statement string) error {
	return run(ctx, c.url(superuser, nameIn(url)), statement)
}

// Stop ends the server; sessions are told so. Nothing is lost.
func (c *Cluster) Stop() error { return c.order("fast") }

// Crash ends the server as a crash would, in the middle of whatever it does.
func (c *Cluster) Crash() error { return c.order("immediate") }

// Restart starts the server again after Stop or Crash, and returns when it answers.
func (c *Cluster) Restart() error {
	if err := c.order("start"); err != nil {
		return err
	}
	return c.ready()
}

// nameIn is the name of the database in a URL.
func nameIn(text string) string {
	u, err := url.Parse(text)
	if err != nil {
		return ""
	}
	return strings.TrimPrefix(u.Path, "/")
}

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
