package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"time"

	"github.com/sporevm/spore/api"
	"github.com/sporevm/spore/client"
)

// heldSnapshot takes a snapshot and runs a command of this machine while the sandbox stands still. A command that fails, or takes
// longer than it may, leaves no snapshot; the sandbox goes on in every case.
func (a *app) heldSnapshot(ctx context.Context, c *client.Client, sandbox string, req api.SnapshotRequest, command string, limit time.Duration) (*api.Template, error) {
	req.HoldSeconds = int(client.Seconds(limit))
	t, err := c.CreateSnapshot(making(ctx), sandbox, req)
	if err != nil {
		return nil, err
	}
	running, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	started := a.Now()
	cmd := exec.CommandContext(running, "/bin/sh", "-c", command)
	cmd.Env = append(os.Environ(), "SPORE_SANDBOX_ID="+sandbox, "SPORE_SNAPSHOT_ID="+t.ID)
	cmd.Stdout, cmd.Stderr = a.Stderr, a.Stderr // standard output is for the snapshot
	cmd.WaitDelay = time.Second
	failed := cmd.Run()
	took := a.Now().Sub(started)
	made, err := c.ReleaseSnapshot(making(ctx), t.ID, failed != nil)
	if failed != nil {
		return nil, fmt.Errorf("the command failed, and there is no snapshot: %w", errors.Join(failed, context.Cause(ctx)))
	}
	if err != nil {
		return nil, err
	}
	a.tellPause(ctx, c, made, took)
	return made, nil
}

// tellPause says how long the sandbox stood still.
func (a *app) tellPause(ctx context.Context, c *client.Client, t *api.Template, command time.Duration) {
	if a.quiet {
		return
	}
	var result struct {
		PausedMicros int64 `json:"pausedMicros"`
	}
	j, err := c.GetJob(making(ctx), t.JobID)
	if err == nil {
		err = client.JobResult(j, &result)
	}
	if err != nil {
		return // the snapshot is there, and its job tells
	}
	paused := time.Duration(result.PausedMicros) * time.Microsecond
	fmt.Fprintf(a.Stderr, "the sandbox stood still for %s, of which the command took %s\n", paused.Round(time.Millisecond), command.Round(time.Millisecond))
}
