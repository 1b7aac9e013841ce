package pgcluster

import (
	"bufio"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

//go:embed supervise.sh
var supervise string

// settings of a server: reached through its socket only, and light enough for several beside each other.
const settings = `
listen_addresses = ''
unix_socket_directories = '%s'
max_connections = 200
shared_buffers = 32MB
wal_level = minimal
max_wal_senders = 0
fsync = %[2]t
full_page_writes = %[2]t
jit = off
`

// Start makes a cluster, of the newest PostgreSQL that is installed, and starts its server. Close it after use.
func Start(opts Options) (_ *Cluster, err error) {
	bin, err := programs()
	if err != nil {
		return nil, err
	}
	attributes, err := unprivileged()
	if err != nil {
		return nil, err
	}
	dir, err := directory(attributes)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("start PostgreSQL: %w", err), os.RemoveAll(dir))
		}
	}()
	// Sorted by the rules of a language, as many a real database is: what must be in the order of its bytes has to say so.
	initdb := exec.Command(filepath.Join(bin, "initdb"), "-D", filepath.Join(dir, "data"), "-U", superuser, "--auth=trust", "--no-sync",
		"--encoding=UTF8", "--locale=C.UTF-8", "--locale-provider=icu", "--icu-locale=en-US")
	initdb.SysProcAttr, initdb.Dir = attributes, dir
	if out, err := initdb.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("initdb: %w\n%s", err, out)
	}
	config := fmt.Sprintf(settings, dir, opts.Durable)
	if err := os.WriteFile(filepath.Join(dir, "data", "postgresql.auto.conf"), []byte(config), 0o600); err != nil {
		return nil, err
	}

	c := &Cluster{dir: dir}
	c.supervisor = exec.Command("/bin/sh", "-c", supervise, "supervise", dir, filepath.Join(bin, "postgres"))
	c.supervisor.SysProcAttr, c.supervisor.Dir = attributes, dir
	if c.orders, err = c.supervisor.StdinPipe(); err != nil {
		return nil, err
	}
	answers, err := c.supervisor.StdoutPipe()
	if err != nil {
		return nil, err
	}
	c.answers = bufio.NewReader(answers)
	if err := c.supervisor.Start(); err != nil {
		return nil, err
	}
	if err := errors.Join(c.Restart(), c.admin(context.Background(), "CREATE ROLE "+role+" LOGIN")); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// programs finds the newest server that is installed.
func programs() (dir string, err error) {
	best := 0
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/postgres")
	if err != nil {
		return "", err
	}
	for _, path := range found {
		bin := filepath.Dir(path)
		version, err := strconv.Atoi(filepath.Base(filepath.Dir(bin)))
		if err == nil && version > best {
			best, dir = version, bin
		}
	}
	if best == 0 {
		return "", errors.New("PostgreSQL is not installed (there is no /usr/lib/postgresql/*/bin/postgres): run make deps")
	}
	return dir, nil
}

// unprivileged is how to start processes that refuse to be root's, in a session of their own: what is meant for the terminal's
// foreground, such as an interrupt, is not meant for them.
func unprivileged() (*syscall.SysProcAttr, error) {
	attributes := &syscall.SysProcAttr{Setsid: true}
	if os.Getuid() != 0 {
		return attributes, nil
	}
	account, err := user.Lookup(superuser)
	if err != nil {
		return nil, fmt.Errorf("PostgreSQL cannot be run as root: %w: run make deps", err)
	}
	uid, errUID := strconv.ParseUint(account.Uid, 10, 32)
	gid, errGID := strconv.ParseUint(account.Gid, 10, 32)
	if err := errors.Join(errUID, errGID); err != nil {
		return nil, err
	}
	attributes.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	return attributes, nil
}

// directory makes one for the cluster and its socket, whose path must be short.
func directory(attributes *syscall.SysProcAttr) (string, error) {
	parent := os.TempDir()
	if len(parent) > 60 || attributes.Credential != nil { // the other account may have no way into a private one
		parent = "/tmp"
	}
	dir, err := os.MkdirTemp(parent, "spore-pg")
	if err != nil || attributes.Credential == nil {
		return dir, err
	}
	return dir, os.Chown(dir, int(attributes.Credential.Uid), int(attributes.Credential.Gid))
}

// order has the supervisor do something, and waits until it has.
func (c *Cluster) order(order string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.late != nil {
		select {
		case <-c.late:
			c.late = nil
		case <-time.After(patience):
			return fmt.Errorf("%s: the order before is not done\n%s", order, c.log())
		}
	}
	if _, err := fmt.Fprintln(c.orders, order); err != nil {
		return fmt.Errorf("%s: %w", order, err)
	}
	done := make(chan error, 1)
	go func() {
		answer, err := c.answers.ReadString('\n')
		if err == nil && strings.TrimSpace(answer) != order {
			err = fmt.Errorf("it answered %q", answer)
		}
		done <- err
	}()
	select {
	case err := <-done:
		if err != nil {
			return fmt.Errorf("%s: %w\n%s", order, err, c.log())
		}
		return nil
	case <-time.After(patience):
		c.late = done
		return fmt.Errorf("%s: not done within %s\n%s", order, patience, c.log())
	}
}

// ready waits until the server answers.
func (c *Cluster) ready() error {
	const pause = 20 * time.Millisecond
	var err error
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(pause) {
		if err = c.admin(context.Background(), "SELECT 1"); err == nil {
			return nil
		}
	}
	return fmt.Errorf("the server does not answer: %w\n%s", err, c.log())
}

// log is what the server has said, for the message of a failure.
func (c *Cluster) log() string {
	text, err := os.ReadFile(filepath.Join(c.dir, "log"))
	if err != nil {
		return err.Error()
	}
	const most = 4000
	if len(text) > most {
		text = text[len(text)-most:]
	}
	return string(text)
}

// Close ends the server and removes all that it kept.
func (c *Cluster) Close() error {
	err := c.orders.Close()
	if waitErr := c.supervisor.Wait(); waitErr != nil {
		err = errors.Join(err, waitErr)
	}
	if err != nil {
		return fmt.Errorf("end PostgreSQL: %w", err)
	}
	return nil
}
