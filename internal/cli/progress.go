package cli

import (
	"context"
	"fmt"
	"io"
	"iter"
	"os"
	"sync"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"golang.org/x/term"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/api"
	"github.com/sporevm/spore/client"
)

// isTerminal says whether a stream is a terminal.
func isTerminal(stream any) bool {
	f, ok := stream.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// progress shows how far something has come: as a bar on a terminal, as lines elsewhere, not at all with -q. It writes to
// standard error, so that standard output stays what was asked for.
type progress struct {
	out io.Writer
	bar *mpb.Bar
	all *mpb.Progress

	mu    sync.Mutex
	label string
	unit  string
	said  string // the last plain line
	then  time.Time
}

func (a *app) newProgress() *progress {
	p := &progress{out: a.Stderr}
	switch {
	case a.quiet:
		p.out = io.Discard
	case isTerminal(a.Stderr) && a.Getenv("TERM") != "dumb":
		p.all = mpb.New(mpb.WithOutput(a.Stderr), mpb.WithWidth(40), mpb.WithRefreshRate(100*time.Millisecond))
		p.bar = p.all.New(1, mpb.BarStyle().Lbound("[").Filler("=").Tip(">").Padding(" ").Rbound("]"), mpb.BarRemoveOnComplete(),
			mpb.PrependDecorators(decor.Any(func(decor.Statistics) string {
				p.mu.Lock()
				defer p.mu.Unlock()
				return p.label
			}, decor.WC{W: 18, C: decor.DindentRight | decor.DextraSpace})),
			mpb.AppendDecorators(decor.Percentage(decor.WC{W: 5}), decor.Any(func(decor.Statistics) string {
				p.mu.Lock()
				defer p.mu.Unlock()
				return p.unit
			})),
		)
	}
	return p
}

// plainEvery is how often a plain line about the same step comes at most.
const plainEvery = 5 * time.Second

// set says that label has come to done of total; total may be 0 when it is not known. detail says it in other words.
func (p *progress) set(label string, done, total int64, detail string) {
	p.mu.Lock()
	if detail != "" {
		detail = "  " + detail
	}
	news := label != p.label
	p.label, p.unit = printable(label, false), printable(detail, false)
	p.mu.Unlock()
	if p.bar != nil {
		if total > 0 {
			// The bar is complete only when finish says so; more may follow on a step that is full.
			p.bar.SetTotal(total+1, false)
			p.bar.SetCurrent(min(done, total))
		}
		return
	}
	if !news && time.Since(p.then) < plainEvery && (total == 0 || done < total) {
		return
	}
	line := printable(label, false)
	if total > 0 {
		line += fmt.Sprintf(" %d%%", 100*min(done, total)/total)
	}
	if line += printable(detail, false); line != p.said {
		p.said, p.then = line, time.Now()
		fmt.Fprintln(p.out, line)
	}
}

// say prints a line beside the progress.
func (p *progress) say(line string) {
	line = printable(line, false) + "\n"
	if p.all != nil {
		if _, err := p.all.Write([]byte(line)); err == nil {
			return
		}
	}
	io.WriteString(p.out, line)
}

// finish takes the bar away.
func (p *progress) finish() {
	if p.all == nil {
		return
	}
	p.bar.Abort(true)
	p.all.Wait()
	p.all = nil
}

// quietFor is how long something may take before the user is told that it is under way.
const quietFor = time.Second

// waiting does something that does not say how far it has come, and shows when it takes long.
func (a *app) waiting(ctx context.Context, what string, do func(context.Context) error) error {
	return a.working(ctx, what, nil, do)
}

// working does something and, when it takes long, shows the job by which it is done: the newest that is active among
// those that jobs select.
func (a *app) working(ctx context.Context, what string, jobs func() iter.Seq2[api.Job, error], do func(context.Context) error) error {
	done := make(chan error, 1)
	go func() { done <- do(ctx) }()
	began := time.Now()
	wait := time.NewTimer(quietFor)
	defer wait.Stop()
	var p *progress
	for {
		select {
		case err := <-done:
			return err
		case <-wait.C:
		}
		if p == nil {
			p = a.newProgress()
			defer p.finish()
		}
		if job := firstActive(jobs); job != nil {
			p.job(client.JobEvent{Job: job})
		} else {
			p.set(what, 0, 0, span(time.Since(began)))
		}
		wait.Reset(quietFor)
	}
}

// firstActive answers the first job that is under way; when there is none, or it cannot be asked for, nil.
func firstActive(jobs func() iter.Seq2[api.Job, error]) *api.Job {
	if jobs == nil {
		return nil
	}
	for job, err := range jobs() {
		if err != nil {
			return nil
		}
		if job.Status.Active() {
			return &job
		}
	}
	return nil
}

// aboutSandbox selects the jobs under way on a sandbox.
func aboutSandbox(ctx context.Context, c *client.Client, id string) func() iter.Seq2[api.Job, error] {
	return func() iter.Seq2[api.Job, error] {
		return c.ListJobs(ctx, api.ListJobsParams{Sandbox: id, Status: []spore.JobStatus{spore.JobPending, spore.JobRunning}, Limit: 1})
	}
}

// step shows the progress events of an operation.
func (p *progress) step(e api.Progress) {
	detail := ""
	if e.Total >= 1<<20 {
		detail = size(e.Done) + " of " + size(e.Total)
	}
	p.set(e.Step, e.Done, e.Total, detail)
}

// job shows the events of a job.
func (p *progress) job(e client.JobEvent) {
	if e.Line != nil {
		if e.Line.Level == "error" {
			return // why it failed is told at the end, with what to do about it
		}
		prefix := ""
		if e.Line.Level != "info" {
			prefix = e.Line.Level + ": "
		}
		p.say(prefix + e.Line.Message)
		return
	}
	detail := ""
	if pull := e.Job.Pull; pull != nil && pull.BytesTotal > 0 && pull.BytesDone < pull.BytesTotal && e.Job.Phase == spore.PhasePulling {
		detail = fmt.Sprintf("%s of %s, layer %d of %d", size(pull.BytesDone), size(pull.BytesTotal), min(pull.LayersDone+1, pull.LayersTotal), pull.LayersTotal)
		if pull.BytesPerSecond > 0 {
			detail += ", " + size(pull.BytesPerSecond) + "/s"
		}
	}
	label := string(e.Job.Phase)
	if label == "" || !e.Job.Status.Active() {
		label = string(e.Job.Status)
	}
	p.set(label, int64(e.Job.Progress), 100, detail)
}
