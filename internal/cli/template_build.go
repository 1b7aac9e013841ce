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

func (a *app) templateBuild() *cobra.Command {
	var req api.BuildRequest
	var memory, disk sizeFlag
	var env mapFlag
	var def definitionFlags
	var place placeFlags
	var defaults defaultsFlags
	var tags []string
	var entrypoint, command, user, workDir, readyCommand, egressCA string
	var readyTimeout time.Duration
	var detach bool
	env.fromEnv, defaults.env.fromEnv = a.Getenv, a.Getenv
	cmd := &cobra.Command{
		Use:   "build NAME --image REF",
		Short: "Build a template from a container image",
		Long: `Build a template from a container image: make its root filesystem, boot it, wait until it is ready, freeze it.

REF is a registry reference, oci:DIR[:TAG], oci-archive:FILE or docker-archive:FILE; files are on the server's
machine. The build waits and shows its progress unless --detach is given; Ctrl-C then cancels it and removes what
it made.

The --default flags are what sandboxes inherit; what a create asks for comes on top. With --tag an alias points at
the template as soon as it is ready. With --network the template gets a network device, without which its sandboxes cannot be
connected, and that is how they are connected unless they ask for something else.`,
		Example: `  spore template build python --image docker.io/library/python:3.12-slim
  spore template build web --image oci-archive:web.tar --ready-http :8080/healthz --memory 1G
  spore template build app --image app:1 --ready-cmd 'test -e /run/ready' --label team=red
  spore template build py-3-13 --image python:3.13 --tag py:3.13 --tag py --pin --default-ttl 1h --reason 'new release'`,
		Args: exactly(1),
		RunE: a.with(func(cmd *cobra.Command, c *client.Client, args []string) error {
			req.Name, req.MemoryMiB, req.DiskMiB, req.Labels = args[0], memory.mib, disk.mib, def.labels.values
			req.Author, req.Reason, req.DisplayName, req.Retain = def.by(a, cmd), def.reason, def.displayName, def.retain
			if err := errors.Join(place.check(cmd), defaults.life.check(cmd), checkTags(cmd, tags, detach)); err != nil {
				return err
			}
			req.Replicas, req.CompatPolicy, req.Defaults = place.replicas(), place.policy.policy, defaults.request()
			if n := defaults.wiring.network(cmd); n != (api.Network{}) {
				req.Network = &n
			}
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
			if err := a.built(cmd.Context(), c, made, detach); err != nil {
				return err
			}
			return many(cmd.Context(), tags, func(tag string) error {
				_, err := c.PutAlias(cmd.Context(), tag, api.AliasRequest{Template: made.Template.ID, Author: req.Author, Reason: req.Reason})
				return err
			})
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
	f.StringArrayVar(&tags, "tag", nil, "alias, NAME or NAME:TAG, to point at it when it is ready; may be given several times")
	f.BoolVar(&req.Insecure, "insecure", false, "speak plain HTTP to the registry")
	f.BoolVarP(&detach, "detach", "d", false, "do not wait until it is built")
	def.add(cmd)
	place.add(cmd, a)
	defaults.add(cmd)
	cmd.MarkFlagRequired("image")
	cmd.RegisterFlagCompletionFunc("kernel", a.complete(kernels))
	return cmd
}

// checkTags refuses tags that cannot be set, before anything is built.
func checkTags(cmd *cobra.Command, tags []string, detach bool) error {
	if len(tags) > 0 && detach {
		return usage(cmd, errors.New("--tag needs the template to be ready, which --detach does not wait for"))
	}
	for _, tag := range tags {
		if _, _, err := spore.ParseAlias("--tag", tag); err != nil {
			return usage(cmd, err)
		}
	}
	return nil
}

// defaultsFlags are what sandboxes inherit from a template.
type defaultsFlags struct {
	life        lifeFlags
	env, labels mapFlag
	wiring      wiringFlags
}

func (f *defaultsFlags) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.Var(&f.env, "default-env", "environment of sandboxes: KEY=VALUE, or KEY for the value it has here")
	flags.Var(&f.labels, "default-label", "label of sandboxes: KEY=VALUE")
	f.life.prefix, f.wiring.prefix = "default-", "default-"
	f.wiring.add(cmd)
	f.life.describe(cmd, "time to live of sandboxes that ask for none, such as 2h", "what happens to those when the time is up: kill or pause")
}

func (f *defaultsFlags) request() api.CreateDefaults {
	return api.CreateDefaults{
		TTLSeconds: client.Seconds(f.life.ttl), OnEnd: spore.EndAction(f.life.onEnd), Env: f.env.values, Labels: f.labels.values,
		Ports: f.wiring.ports.list, Limits: f.wiring.limits,
	}
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
		if _, rmErr := c.DeleteTemplate(ctx, made.Template.ID, client.DeleteOptions{}); rmErr != nil && spore.CodeOf(rmErr) != spore.CodeNotFound {
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
