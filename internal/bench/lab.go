package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/api"
	"github.com/sporevm/spore/client"
)

// lab is where the rows are measured: the server under test, what is built on it, and the files for the floor.
type lab struct {
	cfg  Config
	dir  string // of the whole run
	data string // the servers' data directory, in dir

	client    *client.Client
	image     string
	mishaps   []string              // what failed outside of what is measured, and was tried again
	templates map[int]*api.Template // by MiB of memory
	floors    map[int]*floor        // likewise
}

// Sizes of the templates, in MiB of memory.
const (
	smallGuest = 256
	largeGuest = 2048
)

// poolSize is how many VMs the server of the pool rows keeps ready.
const poolSize = 2

func (l *lab) say(format string, args ...any) {
	fmt.Fprintf(l.cfg.Out, format+"\n", args...) // a line for people; the figures do not depend on it
}

// repeat is how often a row measures: many times, in a quick run a few, or as often as was asked for.
func (l *lab) repeat(many, few int) int {
	switch {
	case l.cfg.Runs > 0:
		return l.cfg.Runs
	case l.cfg.Quick:
		return few
	}
	return many
}

// serving runs fn beside a server on the data directory, and ends the server.
func (l *lab) serving(ctx context.Context, pool bool, fn func(context.Context) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	server := Server{DataDir: l.data, Logger: l.cfg.Logger}
	if pool {
		server.Pool = poolSize
	}
	ready, ended := make(chan string, 1), make(chan error, 1)
	server.Ready = func(url string) { ready <- url }
	go func() { ended <- l.cfg.Serve(ctx, server) }()
	select {
	case err := <-ended:
		return fmt.Errorf("the server ended before it was ready: %w", err)
	case url := <-ready:
		c, err := client.New(url)
		if err == nil {
			l.client = c
			err = fn(ctx)
			c.Close()
		}
		cancel()
		if end := <-ended; end != nil && !errors.Is(end, context.Canceled) {
			err = errors.Join(err, fmt.Errorf("the server's end: %w", end))
		}
		return err
	}
}

// describe notes what the server is.
func (l *lab) describe(ctx context.Context, s *Scope) error {
	info, err := l.client.Info(ctx)
	if err != nil {
		return err
	}
	s.server(info, l.cfg.Image)
	if l.cfg.Image == "" {
		s.Image = smallImage
	}
	return nil
}

// template answers a template of that many MiB of memory, which is built when there is none yet.
func (l *lab) template(ctx context.Context, memoryMiB int) (*api.Template, error) {
	if t := l.templates[memoryMiB]; t != nil {
		return t, nil
	}
	kernels, err := l.client.ListKernels(ctx)
	if err != nil {
		return nil, err
	}
	if len(kernels) == 0 {
		l.say("installing a guest kernel")
		if _, err := l.client.InstallKernel(ctx, l.cfg.Kernel, nil); err != nil {
			return nil, err
		}
	}
	l.say("building a template of %d MiB", memoryMiB)
	made, err := l.client.BuildTemplate(ctx, api.BuildRequest{
		Name: "bench-" + strconv.Itoa(memoryMiB), Image: l.image, VCPUs: 1, MemoryMiB: memoryMiB, DiskMiB: 512,
	})
	if err != nil {
		return nil, err
	}
	if _, err := l.client.WaitJob(ctx, made.Job.ID, nil); err != nil {
		return nil, err
	}
	t, err := l.client.GetTemplate(ctx, made.Template.ID)
	if err != nil {
		return nil, err
	}
	if l.templates == nil {
		l.templates = map[int]*api.Template{}
	}
	l.templates[memoryMiB] = t
	// The first use of anything is another thing than the use of it: files are not in the page cache, code is not yet
	// paged in. The rows measure the latter.
	return t, l.warm(ctx, t)
}

func (l *lab) warm(ctx context.Context, t *api.Template) error {
	for range 2 {
		s, err := l.surely(ctx, t.ID)
		if err != nil {
			return err
		}
		if err := l.end(ctx, s); err != nil {
			return err
		}
	}
	return nil
}

// surely is create for a sandbox that is needed and not measured: a failure is kept, and the create is tried again.
func (l *lab) surely(ctx context.Context, template string) (*api.Sandbox, error) {
	for attempt := 1; ; attempt++ {
		s, err := l.create(ctx, template)
		if err == nil || attempt == 3 || ctx.Err() != nil {
			return s, err
		}
		l.mishaps = append(l.mishaps, err.Error())
	}
}

// create starts a sandbox and runs its first command.
func (l *lab) create(ctx context.Context, template string) (*api.Sandbox, error) {
	s, err := l.client.CreateSandbox(ctx, api.CreateRequest{Template: template})
	if err != nil {
		return nil, err
	}
	if err := l.firstCommand(ctx, s.ID); err != nil {
		return nil, errors.Join(err, l.end(ctx, s))
	}
	return s, nil
}

// firstCommand runs the command by which a sandbox counts as answering.
func (l *lab) firstCommand(ctx context.Context, id string) error {
	return l.client.Sandbox(id).Command(ctx, firstCommand).Run()
}

const firstCommand = "/bin/true"

// end kills a sandbox. It waits until nothing of it is left, so that the next run does not pay for this one.
func (l *lab) end(ctx context.Context, s *api.Sandbox) error {
	return l.client.DeleteSandbox(context.WithoutCancel(ctx), s.ID)
}

// timed measures how long do takes and keeps it, or why it failed.
func timed(s *Series, do func() error) {
	start := time.Now()
	if err := do(); err != nil {
		s.failed(err)
		return
	}
	s.took(time.Since(start))
}

// createTimed measures one create up to its first command, and answers the sandbox; nil when that failed.
func (l *lab) createTimed(ctx context.Context, series *Series, template string) (made *api.Sandbox) {
	timed(series, func() (err error) { made, err = l.create(ctx, template); return err })
	return made
}

// snapshotResult is the result of the job that makes a snapshot, as far as it is of use here.
type snapshotResult struct {
	PausedMicros int64 `json:"pausedMicros"`
}

// snapshot makes a snapshot and answers how long the guest stood still for it.
func (l *lab) snapshot(ctx context.Context, sandbox string) (*api.Template, time.Duration, error) {
	t, err := l.client.CreateSnapshot(ctx, sandbox, api.SnapshotRequest{})
	if err != nil {
		return nil, 0, err
	}
	job, err := l.client.GetJob(ctx, t.JobID)
	if err != nil {
		return nil, 0, err
	}
	var r snapshotResult
	if err := client.JobResult(job, &r); err != nil {
		return nil, 0, err
	}
	if r.PausedMicros <= 0 {
		return nil, 0, fmt.Errorf("job %s does not say how long the guest stood still", job.ID)
	}
	return t, time.Duration(r.PausedMicros) * time.Microsecond, nil
}

// sandboxes lists the sandboxes that there are.
func (l *lab) sandboxes(ctx context.Context) (ids []string, err error) {
	for s, err := range l.client.ListSandboxes(ctx, api.ListSandboxesParams{}) {
		if err != nil {
			return nil, err
		}
		ids = append(ids, s.ID)
	}
	return ids, nil
}

// cleared checks that the rows have left nothing behind: no sandbox, and no VM but those that the pool keeps.
func (l *lab) cleared(ctx context.Context) error {
	ids, err := l.sandboxes(ctx)
	if err != nil {
		return err
	}
	if len(ids) > 0 {
		return fmt.Errorf("sandboxes are left over: %s", strings.Join(ids, ", "))
	}
	owned, err := l.machines()
	if err != nil {
		return err
	}
	for id := range owned {
		if id != "" {
			return fmt.Errorf("a VM of sandbox %s is left over", id)
		}
	}
	return nil
}

// machines answers the directories of the VMs there are, by the sandbox that they are; those of the pool are under "".
func (l *lab) machines() (map[string][]string, error) {
	dirs, err := os.ReadDir(filepath.Join(l.data, "vms"))
	if err != nil {
		return nil, err
	}
	found := map[string][]string{}
	for _, d := range dirs {
		var owner struct {
			Sandbox string `json:"sandbox"`
		}
		dir := filepath.Join(l.data, "vms", d.Name())
		err := readJSON(filepath.Join(dir, "owner.json"), &owner)
		if errors.Is(err, os.ErrNotExist) {
			continue // it is going
		}
		if err != nil {
			return nil, err
		}
		found[owner.Sandbox] = append(found[owner.Sandbox], dir)
	}
	return found, nil
}

// machine answers the directory of a sandbox's VM.
func (l *lab) machine(sandbox string) (string, error) {
	found, err := l.machines()
	if err != nil {
		return "", err
	}
	if dirs := found[sandbox]; len(dirs) == 1 {
		return dirs[0], nil
	}
	return "", spore.Errorf(spore.CodeInternal, "sandbox %s has %d VMs", sandbox, len(found[sandbox]))
}
