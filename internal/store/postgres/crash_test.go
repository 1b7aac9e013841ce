package postgres_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/store"
	"github.com/sporevm/spore/internal/store/postgres"
)

const (
	firstJob  = "job-000000000000000000000001"
	halfDone  = 1 << 30 // the row of the transaction that is never committed
	rowsToSee = 100
)

// child is a server that runs a job which never ends, inserts templates from several goroutines, and is killed in the middle of
// a transaction. It tells of each thing on its standard output once it counts as done.
func child(url string) error {
	ctx := context.Background()
	s, err := postgres.Open(ctx, postgres.Options{URL: url, Controller: "first"})
	if err != nil {
		return err
	}
	if err := s.Update(ctx, func(tx store.Tx) error { return beat(tx, "first") }); err != nil {
		return err
	}
	err = s.Work(ctx, 1, func(ctx context.Context, id string, attempt int, last bool) error {
		fmt.Println("run", id)
		select {}
	})
	if err != nil {
		return err
	}
	j := &spore.Job{ID: firstJob, Operation: spore.OpCreate, Status: spore.JobPending}
	if err := s.Update(ctx, func(tx store.Tx) error { return errors.Join(tx.InsertJob(j), tx.Enqueue(j.ID, 3)) }); err != nil {
		return err
	}
	failed := make(chan error)
	const writers = 4
	for w := range writers {
		go func() {
			for n := w; n < rowsToSee; n += writers {
				if err := s.Update(ctx, func(tx store.Tx) error { return tx.InsertTemplate(row(n)) }); err != nil {
					failed <- err
				}
				fmt.Println("row", row(n).ID)
			}
			failed <- nil
		}()
	}
	for range writers {
		if err := <-failed; err != nil {
			return err
		}
	}
	return s.Update(ctx, func(tx store.Tx) error {
		if err := tx.InsertTemplate(row(halfDone)); err != nil {
			return err
		}
		fmt.Println("half")
		select {}
	})
}

// A server is killed in the middle of a transaction and of a job. The others go on at once, but take its job over only when
// it is declared dead.
func TestKill(t *testing.T) {
	t.Parallel()
	url := database(t)
	closed(t, open(t, url)) // makes the tables
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), childEnv+"="+url)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	half, ran, told := false, "", map[string]bool{}
	for lines := bufio.NewScanner(out); (!half || ran == "") && lines.Scan(); {
		switch kind, what, _ := strings.Cut(lines.Text(), " "); kind {
		case "row":
			told[what] = true
		case "run":
			ran = what
		case "half":
			half = true
		case "error":
			t.Errorf("the child failed: %s", what)
		}
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil || !half || ran != firstJob {
		t.Fatalf("the child ended with %v, ran %q", err, ran)
	}

	s := openAs(t, url, "second")
	defer closed(t, s)
	update(t, s, func(tx store.Tx) error { return beat(tx, "second", "bystander") })
	for id := range told {
		if !has(t, s, id) {
			t.Errorf("the dead had told of %s", id)
		}
	}
	if has(t, s, row(halfDone).ID) {
		t.Error("half a transaction is there")
	}

	type run struct {
		id      string
		attempt int
		last    bool
	}
	runs := make(chan run, 10)
	err = s.Work(t.Context(), 2, func(_ context.Context, id string, attempt int, last bool) error {
		runs <- run{id, attempt, last}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	// It looks for the runs of dead servers when one is declared dead; the first is not, as far as anyone knows.
	update(t, s, func(tx store.Tx) error { return tx.Fence("bystander") })
	other := enqueue(t, s, 1)
	if got, want := receive(t, runs, "a job"), (run{other, 1, true}); got != want {
		t.Fatalf("ran %+v, want %+v", got, want)
	}
	if state, runner := placeState(t, url, firstJob); state != "running" || runner != "first" {
		t.Errorf("the job of a server that may be alive is %s at %s", state, runner)
	}
	update(t, s, func(tx store.Tx) error { return tx.Fence("first") })
	if got, want := receive(t, runs, "the job of the dead"), (run{firstJob, 2, false}); got != want {
		t.Errorf("ran %+v, want %+v", got, want)
	}
	var led int
	conn := connect(t, url)
	defer conn.Close(context.Background())
	if err := conn.QueryRow(t.Context(), "SELECT COUNT(*) FROM spore.river_leader WHERE leader_id = 'first'").Scan(&led); err != nil || led > 0 {
		t.Errorf("the dead still leads the queue: %d, error %v", led, err)
	}
}
