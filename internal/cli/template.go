package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/api"
	"github.com/sporevm/spore/client"
)

func (a *app) templateView() view[api.Template] {
	return view[api.Template]{
		id: func(t api.Template) string { return t.ID },
		columns: []column[api.Template]{
			{"name", false, func(t api.Template) string { return t.Name }},
			{"id", false, func(t api.Template) string { return t.ID }},
			{"kind", true, func(t api.Template) string { return string(t.Kind) }},
			{"status", false, func(t api.Template) string { return string(t.Status) }},
			{"image", false, func(t api.Template) string { return t.Image.Reference }},
			{"vcpus", true, func(t api.Template) string { return fmt.Sprint(t.VCPUs) }},
			{"memory", true, func(t api.Template) string { return mib(t.MemoryMiB) }},
			{"disk", true, func(t api.Template) string { return mib(t.DiskMiB) }},
			{"kept", false, func(t api.Template) string { return size(t.MemoryBytes + t.DiskBytes) }},
			{"parent", true, func(t api.Template) string { return t.ParentID }},
			{"artifact", true, func(t api.Template) string { return t.ArtifactID }},
			{"kernel", true, func(t api.Template) string { return t.KernelID }},
			{"labels", true, func(t api.Template) string { return pairs(t.Labels) }},
			{"age", false, func(t api.Template) string { return a.age(t.CreatedAt) }},
		},
	}
}

func templateDetails(t *api.Template) []detail {
	ca := ""
	if t.EgressCA.Baked {
		ca = fmt.Sprintf("%s in %d trust stores", t.EgressCA.Fingerprint, t.EgressCA.TargetsWritten)
	}
	ephemeral := ""
	if t.Ephemeral {
		ephemeral = "yes: it goes with the last sandbox on it"
	}
	return []detail{
		{"id", t.ID}, {"name", t.Name}, {"kind", string(t.Kind)}, {"status", string(t.Status)}, {"error", t.LastError},
		{"image", t.Image.Reference}, {"digest", t.Image.Digest}, {"platform", t.Image.Platform}, {"artifact", t.ArtifactID},
		{"kernel", t.KernelID}, {"egress CA", ca}, {"vcpus", fmt.Sprint(t.VCPUs)}, {"memory", mib(t.MemoryMiB)}, {"disk", mib(t.DiskMiB)},
		{"entrypoint", commandLine(t.Process.Entrypoint...)}, {"command", commandLine(t.Process.Cmd...)},
		{"env", strings.Join(t.Process.Env, "\n")}, {"user", t.Process.User}, {"workdir", t.Process.WorkDir},
		{"ready when", readiness(t.Readiness)}, {"parent", t.ParentID}, {"origin", t.OriginSandbox}, {"ephemeral", ephemeral},
		{"labels", pairs(t.Labels)}, {"memory kept", size(t.MemoryBytes)}, {"disk kept", size(t.DiskBytes)}, {"job", t.JobID},
		{"created", stamp(t.CreatedAt)}, {"updated", stamp(t.UpdatedAt)},
	}
}

func readiness(r api.Readiness) string {
	return spore.Readiness{Command: r.Command, TCPPort: r.TCPPort, HTTPPath: r.HTTPPath, HTTPPort: r.HTTPPort}.String()
}

func (a *app) templateCommand() *cobra.Command {
	return newGroup("template", "Build, list and delete what sandboxes start from", `  spore template build web --image nginx:1.27 --ready-port 80
  spore template ls -o wide`,
		a.templateBuild(), a.templateList(), a.templateShow(), a.removal("rm", "templates or snapshots", "spore template rm", templates, (*client.Client).DeleteTemplate), a.templateCommit())
}

func (a *app) templateBuild() *cobra.Command {
	var req api.BuildRequest
	var memory, disk sizeFlag
	var env, labels mapFlag
	var entrypoint, command, user, workDir, readyCommand, egressCA string
	var readyTimeout time.Duration
	var detach bool
	env.fromEnv = a.Getenv
	cmd := &cobra.Command{
		Use:   "build NAME --image REF",
		Short: "Build a template from a container image",
		Long: `Build a template from a container image: make its root filesystem, boot it, wait until it is ready, freeze it.

REF is a registry reference, oci:DIR[:TAG], oci-archive:FILE or docker-archive:FILE; files are on the server's
machine. The build waits and shows its progress unless --detach is given; Ctrl-C then cancels it and removes what
it made.`,
		Example: `  spore template build python --image docker.io/library/python:3.12-slim
  spore template build web --image oci-archive:web.tar --ready-http :8080/healthz --memory 1G
  spore template build app --image app:1 --ready-cmd 'test -e /run/ready' --label team=red`,
		Args: exactly(1),
		RunE: a.with(func(cmd *cobra.Command, c *client.Client, args []string) error {
			req.Name, req.MemoryMiB, req.DiskMiB, req.Labels = args[0], memory.mib, disk.mib, labels.values
			var err error
			if req.Image, err = imageRef(req.Image); err != nil {
				return err
			}
			changed := cmd.Flags().Changed
			if changed("entrypoint") {
				if req.Process.Entrypoint, err = splitWords(entrypoint); err != nil {
					return usage(cmd, fmt.Errorf("--entrypoint: %w", err))
				}
			}
			if changed("cmd") {
				if req.Process.Cmd, err = splitWords(command); err != nil {
					return usage(cmd, fmt.Errorf("--cmd: %w", err))
				}
			}
			for _, k := range sortedKeys(env.values) {
				req.Process.Env = append(req.Process.Env, k+"="+env.values[k])
			}
			if changed("user") {
				req.Process.User = &user
			}
			if changed("workdir") {
				if !path.IsAbs(workDir) {
					return usage(cmd, errors.New("--workdir takes an absolute path, not "+quote(workDir)))
				}
				req.Process.WorkDir = &workDir
			}
			if readyCommand != "" {
				req.Readiness.Command = []string{"/bin/sh", "-c", readyCommand}
			}
			if req.Readiness.HTTPPath, req.Readiness.HTTPPort, err = httpProbe(req.Readiness.HTTPPath); err != nil {
				return usage(cmd, err)
			}
			req.Readiness.TimeoutSeconds = client.Seconds(readyTimeout)
			if egressCA != "" {
				pem, err := os.ReadFile(egressCA)
				if err != nil {
					return spore.Invalidf("egress-ca", "cannot be read: %v", err)
				}
				req.EgressCA = string(pem)
			}
			made, err := c.BuildTemplate(making(cmd.Context()), req)
			if err != nil {
				return err
			}
			return a.built(cmd.Context(), c, made, detach)
		}),
	}
	f := cmd.Flags()
	f.StringVar(&req.Image, "image", "", "the image to build from (required)")
	f.IntVar(&req.VCPUs, "cpus", 0, "number of processors (default 1)")
	f.Var(&memory, "memory", "memory, such as 512M or 2G (default 512M)")
	f.Var(&disk, "disk", "size of the writable disk, such as 4G (default 4G)")
	f.VarP(&env, "env", "e", "environment to add to the image's own: KEY=VALUE, or KEY for the value it has here")
	f.StringVarP(&user, "user", "u", "", "user instead of the image's own: name or number, with an optional :group")
	f.StringVarP(&workDir, "workdir", "w", "", "working directory instead of the image's own")
	f.StringVar(&entrypoint, "entrypoint", "", "entrypoint instead of the image's own, as words; quotes keep words together")
	f.StringVar(&command, "cmd", "", "command instead of the image's own, as words; quotes keep words together")
	f.StringVar(&readyCommand, "ready-cmd", "", "ready when this shell command exits with 0")
	f.IntVar(&req.Readiness.TCPPort, "ready-port", 0, "ready when something listens on this port")
	f.StringVar(&req.Readiness.HTTPPath, "ready-http", "", "ready when GET of [:PORT]/PATH answers 2xx or 3xx")
	f.DurationVar(&readyTimeout, "ready-timeout", 0, "how long it may take to become ready (default 2m)")
	f.StringVar(&egressCA, "egress-ca", "", "file with a certificate authority to add to the image's trust stores")
	f.StringVar(&req.KernelID, "kernel", "", "id of the kernel to boot (default the newest)")
	f.Var(&labels, "label", "label to attach: KEY=VALUE")
	f.BoolVar(&req.Insecure, "insecure", false, "speak plain HTTP to the registry")
	f.BoolVarP(&detach, "detach", "d", false, "do not wait until it is built")
	cmd.MarkFlagRequired("image")
	cmd.RegisterFlagCompletionFunc("kernel", a.complete(kernels))
	return cmd
}

// built waits for a template that is being made, and prints it. When ctx ends first, the template goes.
func (a *app) built(ctx context.Context, c *client.Client, made *api.TemplateJob, detach bool) error {
	if detach && ctx.Err() == nil {
		if !a.quiet {
			fmt.Fprintf(a.Stderr, "spore job watch %s\n", made.Job.ID)
		}
		return a.templateView().one(a, made.Template)
	}
	if _, err := a.followOrCancel(ctx, c, made.Job.ID); err != nil {
		if ctx.Err() == nil {
			return err
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoPatience)
		defer cancel()
		if _, rmErr := c.DeleteTemplate(ctx, made.Template.ID, false); rmErr != nil && spore.CodeOf(rmErr) != spore.CodeNotFound {
			return errors.Join(err, fmt.Errorf("template %s could not be removed: %w", made.Template.ID, rmErr))
		}
		return err
	}
	t, err := c.GetTemplate(ctx, made.Template.ID)
	if err != nil {
		return err
	}
	return a.templateView().one(a, *t)
}

// httpProbe reads [:PORT]/PATH.
func httpProbe(s string) (path string, port int, err error) {
	rest, hasPort := strings.CutPrefix(s, ":")
	if !hasPort {
		return s, 0, nil
	}
	digits, path, ok := strings.Cut(rest, "/")
	if _, err := fmt.Sscanf(digits, "%d", &port); err != nil || !ok || port < 1 || port > 65535 || fmt.Sprint(port) != digits {
		return "", 0, errors.New("--ready-http takes [:PORT]/PATH, not " + quote(s))
	}
	return "/" + path, port, nil
}

// splitWords takes a command line apart at white space; single and double quotes keep words together.
func splitWords(s string) ([]string, error) {
	words := []string{}
	var word []byte
	var quoted byte
	in := false
	// Byte by byte: what counts is ASCII, and what is not text must pass unchanged.
	for _, b := range []byte(s) {
		switch {
		case quoted != 0 && b == quoted:
			quoted = 0
		case quoted != 0:
			word = append(word, b)
		case b == '\'' || b == '"':
			quoted, in = b, true
		case b == ' ' || b == '\t' || b == '\n':
			if in {
				words = append(words, string(word))
			}
			word, in = nil, false
		default:
			word, in = append(word, b), true
		}
	}
	if quoted != 0 {
		return nil, fmt.Errorf("a quote (%c) is not closed", quoted)
	}
	if in {
		words = append(words, string(word))
	}
	return words, nil
}

func (a *app) templateList() *cobra.Command {
	var params api.ListTemplatesParams
	var status string
	cmd := &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List templates, newest first",
		Example: "  spore template ls --label team=red -o wide",
		Args:    exactly(0),
		RunE: a.with(func(cmd *cobra.Command, c *client.Client, _ []string) error {
			params.Kind, params.Status = spore.KindTemplate, spore.TemplateStatus(strings.ToUpper(status))
			found, err := gather(c.ListTemplates(cmd.Context(), params))
			if err != nil {
				return err
			}
			return a.templateView().list(a, found)
		}),
	}
	cmd.Flags().StringVar(&status, "status", "", "only those with this status, such as READY")
	cmd.Flags().StringArrayVar(&params.Label, "label", nil, "only those with this label, as KEY=VALUE")
	cmd.Flags().BoolVar(&params.All, "all", false, "deleted ones too")
	return cmd
}

func (a *app) templateShow() *cobra.Command {
	return &cobra.Command{
		Use:               "show TEMPLATE",
		Short:             "Show a template",
		Example:           "  spore template show python",
		Args:              exactly(1),
		ValidArgsFunction: a.complete(onlyTemplates, nothing),
		RunE: a.with(func(cmd *cobra.Command, c *client.Client, args []string) error {
			t, err := c.GetTemplate(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return a.templateView().details(a, *t, templateDetails(t))
		}),
	}
}

func (a *app) templateCommit() *cobra.Command {
	var labels mapFlag
	var detach bool
	cmd := &cobra.Command{
		Use:   "commit SANDBOX NAME",
		Short: "Make a template out of a running sandbox",
		Long: `Make a template out of a running sandbox, which goes on. The commit waits and shows its progress unless --detach
is given; Ctrl-C then cancels it and removes what it made.`,
		Example:           "  spore template commit s0a1b2c3d4e5f60718293 python-numpy",
		Args:              exactly(2),
		ValidArgsFunction: a.complete(sandboxes, nothing),
		RunE: a.with(func(cmd *cobra.Command, c *client.Client, args []string) error {
			made, err := c.CommitSandbox(making(cmd.Context()), args[0], api.CommitRequest{Name: args[1], Labels: labels.values})
			if err != nil {
				return err
			}
			return a.built(cmd.Context(), c, made, detach)
		}),
	}
	cmd.Flags().Var(&labels, "label", "label to attach: KEY=VALUE")
	cmd.Flags().BoolVarP(&detach, "detach", "d", false, "do not wait until it is made")
	return cmd
}

var deletionView = view[api.Deletion]{
	id: func(d api.Deletion) string { return d.ID },
	columns: []column[api.Deletion]{
		{"id", false, func(d api.Deletion) string { return d.ID }},
		{"deleted", false, func(d api.Deletion) string {
			if d.DryRun {
				return "would be"
			}
			return "yes"
		}},
		{"frees", false, func(d api.Deletion) string { return size(d.FreesBytes) }},
		{"retained", false, func(d api.Deletion) string { return size(d.RetainBytes) }},
		{"held by", false, func(d api.Deletion) string { return strings.Join(d.HeldBy, ",") }},
	},
}

// removal makes the rm command of templates or of snapshots.
func (a *app) removal(use, what, path string, complete completer, remove func(*client.Client, context.Context, string, bool) (*api.Deletion, error)) *cobra.Command {
	var dryRun bool
	cmd := &cobra.Command{
		Use:   use + " REF...",
		Short: "Delete " + what,
		Long: "Delete " + what + `, by id or name. What stands on them is never broken: bytes that are still held are kept
until nothing holds them.`,
		Example:           "  " + path + " --dry-run web\n  " + path + " web python",
		Args:              atLeast(1),
		ValidArgsFunction: a.complete(complete),
		RunE: a.with(func(cmd *cobra.Command, c *client.Client, args []string) error {
			var deleted []api.Deletion
			err := many(cmd.Context(), args, func(ref string) error {
				d, err := remove(c, cmd.Context(), ref, dryRun)
				if err == nil {
					deleted = append(deleted, *d)
				}
				return err
			})
			if len(deleted) == 0 && err != nil {
				return err
			}
			return errors.Join(deletionView.list(a, deleted), err)
		}),
	}
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "change nothing; only say what would happen")
	return cmd
}
