package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

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
			{"display name", true, func(t api.Template) string { return t.DisplayName }},
			{"vcpus", true, func(t api.Template) string { return fmt.Sprint(t.VCPUs) }},
			{"memory", true, func(t api.Template) string { return mib(t.MemoryMiB) }},
			{"disk", true, func(t api.Template) string { return mib(t.DiskMiB) }},
			{"kept", false, func(t api.Template) string { return size(t.MemoryBytes + t.DiskBytes) }},
			{"parent", true, func(t api.Template) string { return t.ParentID }},
			{"artifact", true, func(t api.Template) string { return t.ArtifactID }},
			{"kernel", true, func(t api.Template) string { return t.KernelID }},
			{"engine", true, func(t api.Template) string { return t.Engine }},
			{"version", true, func(t api.Template) string { return t.Version }},
			{"retain", true, func(t api.Template) string { return yes(t.Retain) }},
			{"author", true, func(t api.Template) string { return t.Author }},
			{"labels", true, func(t api.Template) string { return pairs(t.Labels) }},
			{"age", false, func(t api.Template) string { return a.age(t.CreatedAt) }},
		},
	}
}

func (a *app) templateDetails(t *api.Template) []detail {
	ca := ""
	if t.EgressCA.Baked {
		ca = fmt.Sprintf("%s in %d trust stores", t.EgressCA.Fingerprint, t.EgressCA.TargetsWritten)
	}
	ephemeral := ""
	if t.Ephemeral {
		ephemeral = "yes: it goes with the last sandbox on it"
	}
	return append([]detail{
		{"id", t.ID}, {"name", t.Name}, {"display name", t.DisplayName}, {"aliases", aliasLabels(t.Aliases)}, {"kind", string(t.Kind)},
		{"status", string(t.Status)}, {"error", t.LastError}, {"author", t.Author}, {"reason", t.Reason}, {"labels", pairs(t.Labels)},
		{"image", t.Image.Reference}, {"digest", t.Image.Digest}, {"platform", t.Image.Platform}, {"artifact", artifactSummary(t)},
		{"kernel", t.KernelID}, {"engine", t.Engine}, {"version", t.Version}, {"storage", t.StorageBackend}, {"egress CA", ca},
		{"vcpus", fmt.Sprint(t.VCPUs)}, {"memory", mib(t.MemoryMiB)}, {"disk", mib(t.DiskMiB)}, {"entrypoint", commandLine(t.Process.Entrypoint...)},
		{"command", commandLine(t.Process.Cmd...)}, {"env", strings.Join(t.Process.Env, "\n")}, {"user", t.Process.User}, {"workdir", t.Process.WorkDir},
		{"ready when", readiness(t.Readiness)}, {"network device", yes(t.NIC)}, {"parent", t.ParentID}, {"origin", t.OriginSandbox}, {"origin node", t.OriginNode}, {"ephemeral", ephemeral},
		{"retain", yes(t.Retain)}, {"memory kept", size(t.MemoryBytes)}, {"disk kept", size(t.DiskBytes)}, {"rootfs", rootfsSize(t)},
		{"created", stamp(t.CreatedAt)}, {"updated", stamp(t.UpdatedAt)},
	}, a.standing(t)...)
}

// standing is where a template is, and who uses it.
func (a *app) standing(t *api.Template) []detail {
	job := t.JobID
	if t.Job != nil {
		job = fmt.Sprintf("%s %s %s", t.Job.ID, t.Job.Operation, t.Job.Status)
	}
	refs := ""
	if t.RefCount != nil {
		refs = fmt.Sprint(*t.RefCount)
	}
	var replicas []string
	for _, r := range t.Replicas {
		line := fmt.Sprintf("%s %s %s, %s", r.NodeID, r.Status, r.Phase, r.CompatStatus)
		if r.ErrorMessage != "" {
			line += ": " + r.ErrorMessage
		}
		replicas = append(replicas, line)
	}
	return []detail{
		{"job", job}, {"compat policy", string(t.CompatPolicy)}, {"wants to be", wanted(t.ReplicaPolicy)},
		{"replicas", strings.Join(replicas, "\n")}, {"sandboxes", refs}, {"used by", strings.Join(t.RefSandboxes, "\n")}, {"request", indented(t.Request)},
	}
}

func rootfsSize(t *api.Template) string {
	if t.RootfsSizeBytes == 0 {
		return ""
	}
	return size(t.RootfsSizeBytes)
}

func aliasLabels(aliases []api.Alias) string {
	labels := make([]string, len(aliases))
	for i, a := range aliases {
		labels[i] = a.Label
	}
	return strings.Join(labels, ", ")
}

func artifactSummary(t *api.Template) string {
	if t.Artifact == nil {
		return t.ArtifactID
	}
	return fmt.Sprintf("%s %s, %s", t.ArtifactID, t.Artifact.Status, size(t.Artifact.SizeBytes))
}

// wanted is a replica policy in words.
func wanted(p api.ReplicaPolicy) string {
	var parts []string
	if len(p.Nodes) > 0 {
		parts = append(parts, "on "+strings.Join(p.Nodes, ", "))
	}
	if len(p.Selector) > 0 {
		parts = append(parts, "where "+pairs(p.Selector))
	}
	if p.Min > 0 {
		parts = append(parts, fmt.Sprintf("at least %d", p.Min))
	}
	if p.Max > 0 {
		parts = append(parts, fmt.Sprintf("at most %d", p.Max))
	}
	if p.Pinned {
		parts = append(parts, "pinned")
	}
	return strings.Join(parts, "; ")
}

// indented is JSON for people.
func indented(raw json.RawMessage) string {
	if len(raw) == 0 {
		return ""
	}
	var v any
	if err := json.Unmarshal(raw, &v); err != nil {
		return string(raw)
	}
	out, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return string(raw)
	}
	return string(out)
}

func readiness(r api.Readiness) string {
	return spore.Readiness{Command: r.Command, TCPPort: r.TCPPort, HTTPPath: r.HTTPPath, HTTPPort: r.HTTPPort}.String()
}

func (a *app) templateCommand() *cobra.Command {
	return newGroup("template", "Build, list, change and delete what sandboxes start from", `  spore template build web --image nginx:1.27 --ready-port 80
  spore template ls -o wide
  spore template redo web --failed-only`,
		a.templateBuild(), a.templateList(), a.templateInfo(), a.templateSet(), a.redo("template", onlyTemplates), a.templateReplicas(), a.templateRefs(),
		a.templateNodes(), a.removal("templates or snapshots", "spore template rm", templates, removeTemplates), a.templateCommit())
}

func (a *app) templateList() *cobra.Command {
	var filter filterFlags
	var kind, artifact string
	cmd := &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List templates, newest first",
		Example: "  spore template ls --label team=red -o wide\n  spore template ls --kind any --artifact rfs-0123456789abcdef01234567",
		Args:    exactly(0),
		RunE: a.with(func(cmd *cobra.Command, c *client.Client, _ []string) error {
			if err := filter.check(cmd); err != nil {
				return err
			}
			params := api.ListTemplatesParams{
				ID: filter.id, Name: filter.name, Status: filter.statusWord(), OriginSandbox: filter.sandbox, Parent: filter.parent, Label: filter.labels,
				All: filter.all, Artifact: artifact,
			}
			switch kind {
			case string(spore.KindTemplate), string(spore.KindSnapshot):
				params.Kind = spore.TemplateKind(kind)
			case "any":
			default:
				return usage(cmd, errors.New("--kind takes template, snapshot or any, not "+quote(kind)))
			}
			found, err := gather(c.ListTemplates(cmd.Context(), params))
			if err != nil {
				return err
			}
			return a.templateView().list(a, found)
		}),
	}
	filter.add(cmd, a)
	cmd.Flags().StringVar(&kind, "kind", string(spore.KindTemplate), "template, snapshot or any")
	cmd.Flags().StringVar(&artifact, "artifact", "", "only those that stand on this artifact")
	cmd.RegisterFlagCompletionFunc("kind", words("template", "snapshot", "any"))
	cmd.RegisterFlagCompletionFunc("artifact", a.complete(artifacts))
	return cmd
}

func (a *app) templateInfo() *cobra.Command {
	return a.info("template", "Show a template, where it is and who uses it", templates, (*client.Client).GetTemplate, (*client.Client).GetTemplateWithRequest, a.templateView)
}

// info makes the info command of templates or of snapshots.
func (a *app) info(kind, short string, complete completer, get, getAll func(*client.Client, context.Context, string) (*api.Template, error), show func() view[api.Template]) *cobra.Command {
	var request bool
	cmd := &cobra.Command{
		Use:               "info " + strings.ToUpper(kind),
		Aliases:           []string{"show"},
		Short:             short,
		Example:           "  spore " + kind + " info python\n  spore " + kind + " info python --include-request",
		Args:              exactly(1),
		ValidArgsFunction: a.complete(complete, nothing),
		RunE: a.with(func(cmd *cobra.Command, c *client.Client, args []string) error {
			if request {
				get = getAll
			}
			t, err := get(c, cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return show().details(a, *t, a.templateDetails(t))
		}),
	}
	cmd.Flags().BoolVar(&request, "include-request", false, "with what sandboxes inherit from it")
	return cmd
}

func (a *app) templateCommit() *cobra.Command {
	var def definitionFlags
	var place placeFlags
	var detach bool
	cmd := &cobra.Command{
		Use:   "commit SANDBOX NAME",
		Short: "Make a template out of a running sandbox",
		Long: `Make a template out of a running sandbox, which goes on. The commit waits and shows its progress unless --detach
is given; Ctrl-C then cancels it and removes what it made.`,
		Example:           "  spore template commit s0a1b2c3d4e5f60718293 python-numpy\n  spore template commit s0a1b2c3d4e5f60718293 tuned --reason 'warm caches' --replicas-min 2",
		Args:              exactly(2),
		ValidArgsFunction: a.complete(sandboxes, nothing),
		RunE: a.with(func(cmd *cobra.Command, c *client.Client, args []string) error {
			if err := place.check(cmd); err != nil {
				return err
			}
			made, err := c.CommitSandbox(making(cmd.Context()), args[0], api.CommitRequest{
				Name: args[1], DisplayName: def.displayName, Labels: def.labels.values, Retain: def.retain, Author: def.by(a, cmd), Reason: def.reason,
				Replicas: place.replicas(), CompatPolicy: place.policy.policy,
			})
			if err != nil {
				return err
			}
			return a.built(cmd.Context(), c, made, detach)
		}),
	}
	def.add(cmd)
	place.add(cmd, a)
	cmd.Flags().BoolVarP(&detach, "detach", "d", false, "do not wait until it is made")
	return cmd
}
