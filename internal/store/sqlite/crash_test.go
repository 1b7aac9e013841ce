package sqlite_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/store"
	"github.com/sporevm/spore/internal/store/sqlite"
)

// childEnv names the database that this test binary, started as a child, is to work on until it is killed.
const childEnv = "SPORE_TEST_STORE"

func TestMain(m *testing.M) {
	if path := os.Getenv(childEnv); path != "" {
		if err := child(path); err != nil {
			fmt.Println("error", err)
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

// child runs a job that never ends and inserts templates from several goroutines. It tells of each on its standard output,
// once it counts as done.
func child(path string) error {
	ctx := context.Background()
	s, err := sqlite.Open(ctx, path, sqlite.Options{})
	if err != nil {
		return err
	}
	err = s.Work(ctx, 1, func(ctx context.Context, id string, attempt int, last bool) error {
		fmt.Println("run", id)
		select {}
	})
	if err != nil {
		return err
	}
	j := &spore.Job{ID: spore.NewJobID(), Operation: spore.OpCreate, Status: spore.JobPending}
	err = s.Update(ctx, func(tx store.Tx) error {
		if err := tx.InsertJob(j); err != nil {
			return err
		}
		return tx.Enqueue(j.ID, 3)
	})
	if err != nil {
		return err
	}
	failed := make(chan error)
	const writers = 4
	for w := range writers {
		go func() {
			for n := w; ; n += writers {
				if err := s.Update(ctx, func(tx store.Tx) error { return tx.InsertTemplate(row(n)) }); err != nil {
					failed <- err
				}
				fmt.Println("row", row(n).ID)
			}
		}()
	}
	return <-failed
}

func TestKill(t *testing.T) {
	path := filepath.Join(t.TempDir(), "spore.db")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), childEnv+"="+path)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	job, told := "", map[string]bool{}
	note := func(line string) {
		kind, id, complete := strings.Cut(line, " ")
		switch {
		case kind == "run" && len(id) == len(spore.NewJobID()):
			job = id
		case kind == "row" && len(id) == len(row(0).ID):
			told[id] = true
		case complete && kind == "error":
			t.Errorf("the child failed: %s", id)
		}
	}
	lines := bufio.NewScanner(out)
	for (job == "" || len(told) < 200) && lines.Scan() {
		note(lines.Text())
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	for lines.Scan() { // what it told before it died
		note(lines.Text())
	}
	if _, err := io.Copy(io.Discard, out); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil || job == "" {
		t.Fatalf("the child ended with %v, job %q", err, job)
	}

	s := open(t, path)
	defer closed(t, s)
	err = s.View(t.Context(), func(tx store.Tx) error {
		for id := range told {
			if _, err := tx.Template(id); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatalf("of %d rows that the dead had told of: %v", len(told), err)
	}
	type run struct {
		id      string
		attempt int
		last    bool
	}
	ran := make(chan run, 1)
	err = s.Work(t.Context(), 1, func(_ context.Context, id string, attempt int, last bool) error {
		ran <- run{id, attempt, last}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := <-ran, (run{job, 2, false}); got != want {
		t.Errorf("ran %+v, want %+v", got, want)
	}
	if err := s.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
}
