package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/api"
	"github.com/sporevm/spore/client"
)

func (a *app) artifactView() view[api.Artifact] {
	return view[api.Artifact]{
		id: func(f api.Artifact) string { return f.ID },
		columns: []column[api.Artifact]{
			{"id", false, func(f api.Artifact) string { return f.ID }},
			{"status", false, func(f api.Artifact) string { return string(f.Status) }},
			{"image", false, func(f api.Artifact) string { return f.Image.Reference }},
			{"size", false, func(f api.Artifact) string { return size(f.SizeBytes) }},
			{"digest", true, func(f api.Artifact) string { return f.Digest }},
			{"unused", false, func(f api.Artifact) string { return a.age(f.UnusedAt) }},
			{"job", true, func(f api.Artifact) string { return f.BuildJobID }},
			{"age", false, func(f api.Artifact) string { return a.age(f.CreatedAt) }},
			{"error", true, func(f api.Artifact) string { return f.LastError }},
		},
	}
}

func (a *app) artifactCommand() *cobra.Command {
	return newGroup("artifact", "Look at, check and fetch the root filesystems that templates stand on", `  spore artifact ls --status ready
  spore artifact download rfs-0123456789abcdef01234567 -O rootfs.ext4`,
		a.artifactList(), a.artifactInfo(), a.artifactVerify(), a.artifactDownload(), a.artifactToken())
}

var artifactStatuses = []spore.ArtifactStatus{
	spore.ArtifactPending, spore.ArtifactBuilding, spore.ArtifactReady, spore.ArtifactFailed, spore.ArtifactCleanupPending, spore.ArtifactOrphaned,
}

func (a *app) artifactList() *cobra.Command {
	var status string
	cmd := &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List artifacts, newest first",
		Example: "  spore artifact ls --status failed,cleanup-pending",
		Args:    exactly(0),
		RunE: a.with(func(cmd *cobra.Command, c *client.Client, _ []string) error {
			params := api.ListArtifactsParams{Status: constants[spore.ArtifactStatus](status)}
			for _, s := range params.Status {
				if !slices.Contains(artifactStatuses, s) {
					return usage(cmd, errors.New("--status takes "+strings.Join(lowered(artifactStatuses), ", ")))
				}
			}
			found, err := gather(c.ListArtifacts(cmd.Context(), params))
			if err != nil {
				return err
			}
			return a.artifactView().list(a, found)
		}),
	}
	cmd.Flags().StringVar(&status, "status", "", "only these, separated by commas: "+strings.Join(lowered(artifactStatuses), ", "))
	cmd.RegisterFlagCompletionFunc("status", words(lowered(artifactStatuses)...))
	return cmd
}

func (a *app) artifactInfo() *cobra.Command {
	return &cobra.Command{
		Use:               "info ARTIFACT",
		Aliases:           []string{"show"},
		Short:             "Show an artifact, and which nodes were given it",
		Example:           "  spore artifact info rfs-0123456789abcdef01234567",
		Args:              exactly(1),
		ValidArgsFunction: a.complete(artifacts, nothing),
		RunE: a.with(func(cmd *cobra.Command, c *client.Client, args []string) error {
			f, err := c.GetArtifact(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			users, ca := "", ""
			if f.Users != nil {
				users = fmt.Sprint(*f.Users)
			}
			if f.EgressCA.Baked {
				ca = fmt.Sprintf("%s in %d trust stores", f.EgressCA.Fingerprint, f.EgressCA.TargetsWritten)
			}
			var on []string
			for _, p := range f.Placements {
				verified := "never verified"
				if !p.VerifiedAt.IsZero() {
					verified = "verified " + a.age(p.VerifiedAt) + " ago"
				}
				on = append(on, p.NodeID+", "+verified)
			}
			return a.artifactView().details(a, *f, []detail{
				{"id", f.ID}, {"status", string(f.Status)}, {"error", f.LastError}, {"image", f.Image.Reference}, {"image digest", f.Image.Digest},
				{"platform", f.Image.Platform}, {"egress CA", ca}, {"digest", f.Digest}, {"size", size(f.SizeBytes)}, {"job", f.BuildJobID}, {"users", users},
				{"on", strings.Join(on, "\n")}, {"unused since", stamp(f.UnusedAt)}, {"removal tried", stamp(f.TriedAt)}, {"created", stamp(f.CreatedAt)}, {"updated", stamp(f.UpdatedAt)},
			})
		}),
	}
}

var verdictView = view[api.NodeVerdict]{
	id: func(v api.NodeVerdict) string { return v.NodeID },
	columns: []column[api.NodeVerdict]{
		{"node", false, func(v api.NodeVerdict) string { return v.NodeID }},
		{"ok", false, func(v api.NodeVerdict) string { return yes(v.OK) }},
		{"error", false, func(v api.NodeVerdict) string {
			if v.Error == nil {
				return ""
			}
			return v.Error.Message
		}},
	},
}

func (a *app) artifactVerify() *cobra.Command {
	var full bool
	cmd := &cobra.Command{
		Use:   "verify ARTIFACT",
		Short: "Have the nodes look for an artifact's bytes",
		Long: `Have every node that was given an artifact look for its bytes, with --full reading all of them. What is found is
written down: one that is lost becomes FAILED and is built again when it is wanted, one that is there becomes READY. The
exit code is 1 when something is wrong on any node.`,
		Example:           "  spore artifact verify rfs-0123456789abcdef01234567 --full",
		Args:              exactly(1),
		ValidArgsFunction: a.complete(artifacts, nothing),
		RunE: a.with(func(cmd *cobra.Command, c *client.Client, args []string) error {
			var v *api.ArtifactVerdict
			err := a.waiting(cmd.Context(), "verifying", func(ctx context.Context) (err error) {
				v, err = c.VerifyArtifact(ctx, args[0], full)
				return err
			})
			if err != nil {
				return err
			}
			if a.output == "json" && !a.quiet {
				err = a.json(v)
			} else {
				err = verdictView.list(a, v.Nodes)
			}
			errs := []error{err}
			for _, one := range v.Nodes {
				if err := client.VerdictError(one); err != nil {
					errs = append(errs, fmt.Errorf("node %s: %w", one.NodeID, err))
				}
			}
			return errors.Join(errs...)
		}),
	}
	cmd.Flags().BoolVar(&full, "full", false, "read every byte")
	return cmd
}

func (a *app) artifactToken() *cobra.Command {
	var ttl time.Duration
	cmd := &cobra.Command{
		Use:   "token ARTIFACT",
		Short: "Make a token with which one artifact can be read, for a while",
		Long: `Make a token with which the bytes of one artifact can be read, and nothing else. Send it as
"Authorization: Spore-Artifact TOKEN". It cannot be taken back; it ends by itself.`,
		Example:           "  spore artifact token rfs-0123456789abcdef01234567 --ttl 10m",
		Args:              exactly(1),
		ValidArgsFunction: a.complete(artifacts, nothing),
		RunE: a.with(func(cmd *cobra.Command, c *client.Client, args []string) error {
			if ttl < 0 {
				return usage(cmd, errors.New("--ttl cannot be negative"))
			}
			t, err := c.ArtifactToken(cmd.Context(), args[0], ttl)
			if err != nil {
				return err
			}
			v := view[api.ArtifactToken]{id: func(t api.ArtifactToken) string { return t.Token }}
			return v.details(a, *t, []detail{{"url", t.URL}, {"token", t.Token}, {"expires", stamp(t.ExpiresAt)}})
		}),
	}
	cmd.Flags().DurationVar(&ttl, "ttl", 0, "how long it is good (default 15m)")
	return cmd
}
