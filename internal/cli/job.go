package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/api"
	"github.com/sporevm/spore/client"
)

func (a *app) jobView() view[api.Job] {
	return view[api.Job]{
		id: func(j api.Job) string { return j.ID },
		columns: []column[api.Job]{
			{"id", false, func(j api.Job) string { return j.ID }},
			{"operation", false, func(j api.Job) string { return string(j.Operation) }},
			{"status", false, func(j api.Job) string { return string(j.Status) }},
			{"phase", false, func(j api.Job) string { return string(j.Phase) }},
			{"progress", false, func(j api.Job) string { return fmt.Sprintf("%d%%", j.Progress) }},
			{"resource", false, func(j api.Job) string { return j.ResourceID }},
			{"sandbox", true, func(j api.Job) string { return j.SandboxID }},
			{"node", true, func(j api.Job) string { return j.NodeID }},
			{"replicas", true, func(j api.Job) string { return nodeCounts(j.Nodes) }},
			{"owner", true, func(j api.Job) string { return j.Owner }},
			{"attempt", true, func(j api.Job) string { return fmt.Sprint(j.Attempt) }},
			{"age", false, func(j api.Job) string { return a.age(j.CreatedAt) }},
			{"took", true, func(j api.Job) string { return took(j) }},
			{"error", true, func(j api.Job) string {
				if j.Error == nil {
					return ""
				}
				return j.Error.Message
			}},
		},
	}
}

// nodeCounts says how the making of replicas goes.
func nodeCounts(n *api.NodeCounts) string {
	if n == nil {
		return ""
	}
	text := fmt.Sprintf("%d/%d", n.Ready, n.Expected)
	if n.Failed > 0 {
		text += fmt.Sprintf(", %d failed", n.Failed)
	}
	return text
}

// pulled says what the pull of an image has moved.
func pulled(p *api.PullProgress) string {
	if p == nil {
		return ""
	}
	text := fmt.Sprintf("%s of %s, %d of %d layers", size(p.BytesDone), size(p.BytesTotal), p.LayersDone, p.LayersTotal)
	if p.BytesPerSecond > 0 {
		text += ", " + size(p.BytesPerSecond) + "/s"
	}
	return text
}

func took(j api.Job) string {
	if j.StartedAt.IsZero() || j.FinishedAt.IsZero() {
		return ""
	}
	return j.FinishedAt.Sub(j.StartedAt).Round(time.Millisecond).String()
}

func (a *app) jobCommand() *cobra.Command {
	return newGroup("job", "Look at the durable runs of operations", `  spore job ls --status RUNNING
  spore job watch job-5f1d7a84be3c90a1d2e4f607`,
		a.jobList(), a.jobShow(), a.jobWatch(), a.jobCancel(), a.jobLog())
}

func (a *app) jobList() *cobra.Command {
	var status, operation string
	var params api.ListJobsParams
	cmd := &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List jobs, newest first",
		Example: "  spore job ls --status PENDING,RUNNING\n  spore job ls --resource tpl-5f1d7a84be3c90a1d2e4f607 -o wide",
		Args:    exactly(0),
		RunE: a.with(func(cmd *cobra.Command, c *client.Client, _ []string) error {
			params.Operation, params.Status = constant[spore.Operation](operation), constants[spore.JobStatus](status)
			found, err := gather(c.ListJobs(cmd.Context(), params))
			if err != nil {
				return err
			}
			return a.jobView().list(a, found)
		}),
	}
	f := cmd.Flags()
	f.StringVar(&status, "status", "", "only these, separated by commas: PENDING, RUNNING, READY, FAILED, CANCELLED")
	f.StringVar(&operation, "operation", "", "only this operation, such as CREATE or FORK")
	f.StringVar(&params.Resource, "resource", "", "only those about the template or snapshot with this id")
	f.StringVar(&params.Sandbox, "sandbox", "", "only those about the sandbox with this id")
	f.StringVar(&params.Node, "node", "", "only those that are done on this node")
	f.StringVar(&params.Owner, "owner", "", "only those that this server runs")
	cmd.RegisterFlagCompletionFunc("status", words("pending", "running", "ready", "failed", "cancelled"))
	cmd.RegisterFlagCompletionFunc("operation", words("create", "redo", "commit", "delete", "replicate", "snapshot-create", "snapshot-rollback", "snapshot-delete", "fork", "flatten"))
	cmd.RegisterFlagCompletionFunc("resource", a.complete(definitions))
	cmd.RegisterFlagCompletionFunc("sandbox", a.complete(sandboxes))
	cmd.RegisterFlagCompletionFunc("node", a.complete(nodes))
	return cmd
}

func (a *app) jobShow() *cobra.Command {
	return &cobra.Command{
		Use:               "show JOB",
		Aliases:           []string{"info"},
		Short:             "Show a job",
		Example:           "  spore job show job-5f1d7a84be3c90a1d2e4f607",
		Args:              exactly(1),
		ValidArgsFunction: a.complete(jobs, nothing),
		RunE: a.with(func(cmd *cobra.Command, c *client.Client, args []string) error {
			j, err := c.GetJob(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return a.jobView().details(a, *j, jobDetails(j))
		}),
	}
}

func jobDetails(j *api.Job) []detail {
	failure, hint, cancel := "", "", ""
	if j.Error != nil {
		failure, hint = fmt.Sprintf("%s (%s)", j.Error.Message, codeWords(j.Error.Code, j.Error.Reason)), j.Error.Hint
	}
	if j.CancelRequested {
		cancel = "requested"
	}
	var mode, scope, resume string
	if j.Redo != nil {
		mode, scope, resume = string(j.Redo.Mode), strings.Join(j.Redo.Scope, ", "), string(j.Redo.ResumePhase)
	}
	return []detail{
		{"id", j.ID}, {"operation", string(j.Operation)}, {"resource", strings.TrimSpace(string(j.ResourceType) + " " + j.ResourceID)},
		{"resource is", string(j.TemplateStatus)}, {"artifact", j.ArtifactID}, {"artifact is", string(j.ArtifactStatus)}, {"sandbox", j.SandboxID},
		{"node", j.NodeID}, {"status", string(j.Status)}, {"phase", string(j.Phase)}, {"progress", fmt.Sprintf("%d%%", j.Progress)}, {"pulled", pulled(j.Pull)},
		{"replicas", nodeCounts(j.Nodes)}, {"redo mode", mode}, {"redo on", scope}, {"redo from", resume}, {"attempt", fmt.Sprint(j.Attempt)},
		{"retry of", j.RetryOfJobID}, {"request id", j.RequestID}, {"owner", j.Owner}, {"cancel", cancel}, {"error", failure}, {"hint", hint},
		{"created", stamp(j.CreatedAt)}, {"started", stamp(j.StartedAt)}, {"finished", stamp(j.FinishedAt)}, {"took", took(*j)},
		{"request", string(j.Request)}, {"result", string(j.Result)},
	}
}

func (a *app) jobWatch() *cobra.Command {
	return &cobra.Command{
		Use:   "watch JOB",
		Short: "Follow a job until it ends",
		Long: `Follow a job until it ends. The exit code is 0 when it ended well. Leaving the watch with Ctrl-C does not
end the job.`,
		Example:           "  spore job watch job-5f1d7a84be3c90a1d2e4f607",
		Args:              exactly(1),
		ValidArgsFunction: a.complete(jobs, nothing),
		RunE: a.with(func(cmd *cobra.Command, c *client.Client, args []string) error {
			j, err := a.follow(cmd.Context(), c, args[0])
			if err != nil {
				return err
			}
			return a.jobView().one(a, *j)
		}),
	}
}

// follow shows a job's progress until it ends.
func (a *app) follow(ctx context.Context, c *client.Client, id string) (*api.Job, error) {
	p := a.newProgress()
	defer p.finish()
	return c.WaitJob(ctx, id, p.job)
}

// followOrCancel shows a job's progress until it ends. When ctx ends first it cancels the job and waits for that.
func (a *app) followOrCancel(ctx context.Context, c *client.Client, id string) (*api.Job, error) {
	j, err := a.follow(ctx, c, id)
	if ctx.Err() == nil {
		return j, err
	}
	fmt.Fprintln(a.Stderr, "cancelling; press Ctrl-C again to leave at once")
	ctx, stop := context.WithTimeout(context.WithoutCancel(ctx), undoPatience)
	defer stop()
	interrupted := spore.Errorf(spore.CodeCanceled, "interrupted")
	if _, err := c.CancelJob(ctx, id); err != nil && spore.CodeOf(err) != spore.CodeConflict {
		return j, errors.Join(interrupted, err)
	}
	switch j, err = c.WaitJob(ctx, id, nil); {
	case j == nil:
		return nil, errors.Join(interrupted, err)
	case j.Status.Active():
		return j, errors.Join(interrupted, spore.Errorf(spore.CodeBusy, "job %s has not ended yet", id).WithHint("spore job watch %s", id))
	default:
		return j, interrupted
	}
}

func (a *app) jobCancel() *cobra.Command {
	return &cobra.Command{
		Use:               "cancel JOB...",
		Short:             "Ask jobs to end at their next safe point",
		Example:           "  spore job cancel job-5f1d7a84be3c90a1d2e4f607",
		Args:              atLeast(1),
		ValidArgsFunction: a.complete(jobs),
		RunE: a.with(func(cmd *cobra.Command, c *client.Client, args []string) error {
			var canceled []api.Job
			err := many(cmd.Context(), args, func(id string) error {
				j, err := c.CancelJob(cmd.Context(), id)
				if err == nil {
					canceled = append(canceled, *j)
				}
				return err
			})
			if len(canceled) == 0 && err != nil {
				return err
			}
			return errors.Join(a.jobView().list(a, canceled), err)
		}),
	}
}

func (a *app) jobLog() *cobra.Command {
	var follow bool
	cmd := &cobra.Command{
		Use:               "log JOB",
		Short:             "Print a job's log",
		Example:           "  spore job log -f job-5f1d7a84be3c90a1d2e4f607",
		Args:              exactly(1),
		ValidArgsFunction: a.complete(jobs, nothing),
		RunE: a.with(func(cmd *cobra.Command, c *client.Client, args []string) error {
			if follow {
				return c.WatchJob(cmd.Context(), args[0], func(e client.JobEvent) error {
					if e.Line == nil {
						return nil
					}
					return a.logLine(*e.Line)
				})
			}
			for line, err := range c.JobLog(cmd.Context(), args[0], 0) {
				if err != nil {
					return err
				}
				if err := a.logLine(line); err != nil {
					return err
				}
			}
			return nil
		}),
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on until the job ends")
	return cmd
}

// logLine prints one line of a log; as JSON, one object a line.
func (a *app) logLine(l api.LogLine) error {
	if a.output == "json" {
		return a.jsonLine(l)
	}
	_, err := fmt.Fprintf(a.Stdout, "%s %-5s %s\n", l.Time.UTC().Format("2006-01-02T15:04:05.000Z"), l.Level, printable(l.Message, false))
	return err
}
