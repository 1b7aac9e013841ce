package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/api"
	"github.com/sporevm/spore/client"
)

func (a *app) replicaView() view[api.Replica] {
	return view[api.Replica]{
		id: func(r api.Replica) string { return r.NodeID },
		columns: []column[api.Replica]{
			{"node", false, func(r api.Replica) string { return r.NodeID }},
			{"status", false, func(r api.Replica) string { return string(r.Status) }},
			{"phase", false, func(r api.Replica) string { return string(r.Phase) }},
			{"compat", false, func(r api.Replica) string { return string(r.CompatStatus) }},
			{"policy", true, func(r api.Replica) string { return string(r.CompatPolicy) }},
			{"guest image", true, func(r api.Replica) string { return r.Bound.GuestImage }},
			{"agent", true, func(r api.Replica) string { return r.Bound.Agent }},
			{"kernel", true, func(r api.Replica) string { return r.Bound.Kernel }},
			{"state format", true, func(r api.Replica) string { return r.Bound.StateFormat }},
			{"artifact", true, func(r api.Replica) string { return r.ArtifactID }},
			{"attempts", false, func(r api.Replica) string { return fmt.Sprint(r.Attempts) }},
			{"retry in", false, func(r api.Replica) string {
				if r.RetryAt.IsZero() {
					return ""
				}
				return a.left(r.RetryAt)
			}},
			{"cleanup", true, func(r api.Replica) string { return yes(r.CleanupRequired) }},
			{"job", true, func(r api.Replica) string { return r.LastJobID }},
			{"verified", true, func(r api.Replica) string { return a.age(r.VerifiedAt) }},
			{"failed in", false, func(r api.Replica) string { return string(r.LastErrorPhase) }},
			{"error", false, func(r api.Replica) string { return r.ErrorMessage }},
		},
	}
}

func (a *app) templateReplicas() *cobra.Command {
	return &cobra.Command{
		Use:               "replicas REF",
		Short:             "List the replicas of a template or snapshot, one for each node",
		Example:           "  spore template replicas python -o wide",
		Args:              exactly(1),
		ValidArgsFunction: a.complete(templates, nothing),
		RunE: a.with(func(cmd *cobra.Command, c *client.Client, args []string) error {
			found, err := c.ListReplicas(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return a.replicaView().list(a, found)
		}),
	}
}

func (a *app) refView() view[api.RuntimeRef] {
	return view[api.RuntimeRef]{
		id: func(r api.RuntimeRef) string { return r.SandboxID },
		columns: []column[api.RuntimeRef]{
			{"id", true, func(r api.RuntimeRef) string { return fmt.Sprint(r.ID) }},
			{"sandbox", false, func(r api.RuntimeRef) string { return r.SandboxID }},
			{"template", false, func(r api.RuntimeRef) string { return r.TemplateID }},
			{"node", false, func(r api.RuntimeRef) string { return r.NodeID }},
			{"binding", true, func(r api.RuntimeRef) string { return r.Binding }},
			{"generation", false, func(r api.RuntimeRef) string { return fmt.Sprint(r.Generation) }},
			{"status", false, func(r api.RuntimeRef) string { return string(r.Status) }},
			{"attached", false, func(r api.RuntimeRef) string { return a.age(r.AttachedAt) }},
			{"released", true, func(r api.RuntimeRef) string { return a.age(r.ReleasedAt) }},
			{"seen", true, func(r api.RuntimeRef) string { return a.age(r.LastSeenAt) }},
			{"lease until", true, func(r api.RuntimeRef) string { return stamp(r.LeaseUntil) }},
			{"reason", true, func(r api.RuntimeRef) string { return r.Reason }},
			{"error", false, func(r api.RuntimeRef) string { return r.LastError }},
		},
	}
}

func (a *app) templateRefs() *cobra.Command {
	return a.refs("REF", "List the sandboxes that stand on a template or snapshot", "  spore template refs python --all", templates, (*client.Client).TemplateRefs)
}

func (a *app) sandboxRefs() *cobra.Command {
	return a.refs("SANDBOX", "List what a sandbox stands on", "  spore sandbox refs s0a1b2c3d4e5f60718293 --all", sandboxes, (*client.Client).SandboxRefs)
}

// refLister asks for refs.
type refLister = func(c *client.Client, ctx context.Context, id string, all bool, limit int) (*api.RefList, error)

// mostAtOnce is how many items one answer may hold.
const mostAtOnce = 1000

// refs makes a command that lists runtime refs.
func (a *app) refs(arg, short, example string, complete completer, ask refLister) *cobra.Command {
	var all bool
	limit := 100
	cmd := &cobra.Command{
		Use:               "refs " + arg,
		Short:             short,
		Example:           example,
		Args:              exactly(1),
		ValidArgsFunction: a.complete(complete, nothing),
		RunE: a.with(func(cmd *cobra.Command, c *client.Client, args []string) error {
			if limit < 1 || limit > mostAtOnce {
				return usage(cmd, fmt.Errorf("--limit is between 1 and %d", mostAtOnce))
			}
			l, err := ask(c, cmd.Context(), args[0], all, limit)
			if err != nil {
				return err
			}
			if a.output == "json" && !a.quiet {
				return a.json(l)
			}
			if l.Total > len(l.Refs) && !a.quiet {
				fmt.Fprintf(a.Stderr, "the newest %d of %d; see --limit\n", len(l.Refs), l.Total)
			}
			return a.refView().list(a, l.Refs)
		}),
	}
	cmd.Flags().BoolVar(&all, "all", false, "released ones too")
	cmd.Flags().IntVar(&limit, "limit", limit, "at most this many, the newest")
	return cmd
}

func (a *app) templateNodes() *cobra.Command {
	return &cobra.Command{
		Use:               "nodes REF",
		Short:             "Say on which nodes sandboxes can start from a template or snapshot",
		Example:           "  spore template nodes python",
		Args:              exactly(1),
		ValidArgsFunction: a.complete(templates, nothing),
		RunE: a.with(func(cmd *cobra.Command, c *client.Client, args []string) error {
			scope, err := c.ReadyNodes(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if a.output == "json" && !a.quiet {
				return a.json(scope)
			}
			for _, id := range scope.Nodes {
				fmt.Fprintln(a.Stdout, printable(id, false))
			}
			if len(scope.Stale) > 0 && !a.quiet {
				fmt.Fprintf(a.Stderr, "stale on %s; spore template redo %s --node %s\n", printable(strings.Join(scope.Stale, ", "), false),
					printable(args[0], false), printable(strings.Join(scope.Stale, " --node "), false))
			}
			return nil
		}),
	}
}

// redo makes the redo command of templates or of snapshots.
func (a *app) redo(kind string, complete completer) *cobra.Command {
	var nodeIDs []string
	var failedOnly, wait, detach, network bool
	cmd := &cobra.Command{
		Use:   "redo REF",
		Short: "Make the replicas of a " + kind + " again",
		Long: "Make the replicas of a " + kind + ` again: on all nodes, on those named with --node, or with --failed-only where
they failed. The new replica is made beside the old one, tried, and only then put in its place; what serves goes on
serving, also when the redo fails. Progress is shown until it is done, unless --detach is given; Ctrl-C then cancels it.`,
		Example:           "  spore " + kind + " redo web\n  spore " + kind + " redo web --failed-only --node node-2",
		Args:              exactly(1),
		ValidArgsFunction: a.complete(complete, nothing),
		RunE: a.with(func(cmd *cobra.Command, c *client.Client, args []string) error {
			if wait && detach {
				return usage(cmd, errors.New("--wait and --detach exclude each other"))
			}
			if kind == string(spore.KindSnapshot) {
				if _, err := c.GetSnapshot(cmd.Context(), args[0]); err != nil {
					return err
				}
			}
			j, err := c.RedoTemplate(making(cmd.Context()), args[0], api.RedoRequest{Mode: redoMode(failedOnly, nodeIDs), Nodes: nodeIDs, AddNetwork: network})
			if err != nil {
				return err
			}
			if detach && cmd.Context().Err() == nil {
				if !a.quiet {
					fmt.Fprintf(a.Stderr, "spore job watch %s\n", j.ID)
				}
				return a.jobView().one(a, *j)
			}
			if j, err = a.followOrCancel(cmd.Context(), c, j.ID); err != nil {
				return err
			}
			return a.jobView().one(a, *j)
		}),
	}
	cmd.Flags().StringArrayVar(&nodeIDs, "node", nil, "only on this node; may be given several times")
	cmd.Flags().BoolVar(&failedOnly, "failed-only", false, "only replicas that failed or must be cleaned")
	cmd.Flags().BoolVar(&network, "network", false, "give it a network device, so that its sandboxes can be connected")
	cmd.Flags().BoolVar(&wait, "wait", false, "wait until it is done, which is what happens anyway")
	cmd.Flags().BoolVarP(&detach, "detach", "d", false, "do not wait until it is done")
	cmd.RegisterFlagCompletionFunc("node", a.complete(nodes))
	return cmd
}

// redoMode says which replicas are made again.
func redoMode(failedOnly bool, nodes []string) spore.RedoMode {
	switch {
	case failedOnly && len(nodes) > 0:
		return spore.RedoFailedNodes
	case failedOnly:
		return spore.RedoFailedOnly
	case len(nodes) > 0:
		return spore.RedoNodes
	}
	return spore.RedoAll
}
