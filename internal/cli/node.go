package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/sporevm/spore/api"
	"github.com/sporevm/spore/client"
)

// nodeState is a node's state in words.
func nodeState(n api.Node) string {
	if n.Draining {
		return string(n.State) + ", draining"
	}
	return string(n.State)
}

func (a *app) nodeView() view[api.Node] {
	return view[api.Node]{
		id: func(n api.Node) string { return n.ID },
		columns: []column[api.Node]{
			{"id", false, func(n api.Node) string { return n.ID }},
			{"state", false, nodeState},
			{"address", true, func(n api.Node) string { return n.Address }},
			{"engine", false, func(n api.Node) string { return n.Engine }},
			{"sandboxes", false, func(n api.Node) string { return fmt.Sprint(n.Sandboxes) }},
			{"vcpus", true, func(n api.Node) string { return fmt.Sprint(n.VCPUs) }},
			{"memory", false, func(n api.Node) string { return mib(n.MemoryPromisedMiB) + " of " + mib(n.MemoryMiB) }},
			{"disk", false, func(n api.Node) string { return fmt.Sprintf("%d%% %s", n.Storage.UsagePct, n.Storage.Mode) }},
			{"guest image", true, func(n api.Node) string { return n.Components.GuestImage }},
			{"agent", true, func(n api.Node) string { return n.Components.Agent }},
			{"kernel", true, func(n api.Node) string { return n.Components.Kernel }},
			{"networks", false, func(n api.Node) string { return networkModes(n, ",") }},
			{"labels", false, func(n api.Node) string { return pairs(n.Labels) }},
			{"seen", false, func(n api.Node) string { return a.age(n.SeenAt) }},
			{"reason", true, func(n api.Node) string { return n.StateReason }},
		},
	}
}

func (a *app) nodeCommand() *cobra.Command {
	return newGroup("node", "Look at, label, empty and give up machines", `  spore node ls -o wide
  spore node drain node-2`,
		a.nodeList(), a.nodeInfo(), a.nodeLabel(),
		a.nodeDrain("drain", "Give nodes no new sandboxes and replicas, and have their replicas made elsewhere",
			"What runs there goes on. When no sandbox is left and the replicas are elsewhere, the machine can be taken away.", (*client.Client).DrainNode),
		a.nodeDrain("undrain", "Use drained nodes again", "Replicas are made there again as templates want them.", (*client.Client).UndrainNode),
		a.nodeForget(), a.nodeStorage())
}

func (a *app) nodeList() *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List nodes",
		Example: "  spore node ls -o wide",
		Args:    exactly(0),
		RunE: a.with(func(cmd *cobra.Command, c *client.Client, _ []string) error {
			found, err := c.ListNodes(cmd.Context(), all)
			if err != nil {
				return err
			}
			return a.nodeView().list(a, found)
		}),
	}
	cmd.Flags().BoolVar(&all, "all", false, "forgotten ones too")
	return cmd
}

// networkModes are the modes that a node has. On lines of their own the others follow, with the reasons.
func networkModes(n api.Node, between string) string {
	var words []string
	for _, has := range n.Networks {
		switch {
		case has.WhyNot == "":
			words = append(words, string(has.Mode))
		case between == "\n":
			words = append(words, "not "+string(has.Mode)+": "+has.WhyNot)
		}
	}
	return strings.Join(words, between)
}

// versions are components on one line.
func versions(c api.Components) string {
	var parts []string
	for _, p := range []detail{{"guest image", c.GuestImage}, {"agent", c.Agent}, {"kernel", c.Kernel}, {"engine", strings.TrimSpace(c.Engine + " " + c.EngineVersion)}, {"state format", c.StateFormat}, {"cpu", c.CPU}} {
		if p.value != "" {
			parts = append(parts, p.name+" "+p.value)
		}
	}
	return strings.Join(parts, ", ")
}

func (a *app) nodeInfo() *cobra.Command {
	return &cobra.Command{
		Use:               "info NODE",
		Aliases:           []string{"show"},
		Short:             "Show a node",
		Example:           "  spore node info node-2",
		Args:              exactly(1),
		ValidArgsFunction: a.complete(nodes, nothing),
		RunE: a.with(func(cmd *cobra.Command, c *client.Client, args []string) error {
			n, err := c.GetNode(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			var beside []string
			for _, installed := range n.Installed {
				beside = append(beside, versions(installed))
			}
			s := n.Storage
			return a.nodeView().details(a, *n, []detail{
				{"id", n.ID}, {"state", nodeState(*n)}, {"reason", n.StateReason}, {"address", n.Address}, {"labels", pairs(n.Labels)}, {"engine", n.Engine},
				{"networks", networkModes(*n, "\n")}, {"versions", versions(n.Components)}, {"beside", strings.Join(beside, "\n")}, {"vcpus", fmt.Sprint(n.VCPUs)},
				{"memory", mib(n.MemoryPromisedMiB) + " promised of " + mib(n.MemoryMiB)}, {"sandboxes", fmt.Sprint(n.Sandboxes)},
				{"disk", storageSummary(s)}, {"disk error", s.LastError}, {"measured", stamp(s.LastUpdatedAt)}, {"seen", stamp(n.SeenAt)},
				{"created", stamp(n.CreatedAt)}, {"updated", stamp(n.UpdatedAt)},
			})
		}),
	}
}

func storageSummary(s api.NodeStorage) string {
	return fmt.Sprintf("%s: %d%% of %s, %s used, %s reserved", s.Mode, s.UsagePct, size(s.TotalBytes), size(s.UsedBytes), size(s.ReservedBytes))
}

func (a *app) nodeLabel() *cobra.Command {
	return &cobra.Command{
		Use:   "label NODE KEY=VALUE|KEY-...",
		Short: "Set or take away labels of a node",
		Long: `Set labels of a node, or take them away: KEY- takes the label KEY away. Others stay. Templates choose nodes by their
labels.`,
		Example:           "  spore node label node-2 zone=a disk=nvme\n  spore node label node-2 zone-",
		Args:              atLeast(2),
		ValidArgsFunction: a.complete(nodes, nodeLabels),
		RunE: a.with(func(cmd *cobra.Command, c *client.Client, args []string) error {
			set, unset, err := labelArgs(args[1:])
			if err != nil {
				return usage(cmd, err)
			}
			n, err := c.GetNode(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if n, err = c.LabelNode(cmd.Context(), n.ID, changedLabels(n.Labels, set, unset)); err != nil {
				return err
			}
			return a.nodeView().one(a, *n)
		}),
	}
}

// labelArgs reads KEY=VALUE and KEY- words.
func labelArgs(args []string) (set map[string]string, unset []string, err error) {
	set = map[string]string{}
	for _, arg := range args {
		key, value, ok := strings.Cut(arg, "=")
		taken, dash := strings.CutSuffix(arg, "-")
		switch {
		case ok && key != "":
			set[key] = value
		case !ok && dash && taken != "":
			unset = append(unset, taken)
		default:
			return nil, nil, errors.New("write KEY=VALUE, or KEY- to take a label away, not " + quote(arg))
		}
	}
	for _, key := range unset {
		if _, both := set[key]; both {
			return nil, nil, errors.New("label " + quote(key) + " is to be set and taken away")
		}
	}
	return set, unset, nil
}

// nodeDrain makes the drain command or its opposite.
func (a *app) nodeDrain(name, short, long string, do func(*client.Client, context.Context, string) (*api.Node, error)) *cobra.Command {
	return &cobra.Command{
		Use:               name + " NODE...",
		Short:             short,
		Long:              short + ". " + long,
		Example:           "  spore node " + name + " node-2",
		Args:              atLeast(1),
		ValidArgsFunction: a.complete(nodes),
		RunE: a.with(func(cmd *cobra.Command, c *client.Client, args []string) error {
			var changed []api.Node
			err := many(cmd.Context(), args, func(id string) error {
				n, err := do(c, cmd.Context(), id)
				if err == nil {
					changed = append(changed, *n)
				}
				return err
			})
			if len(changed) == 0 && err != nil {
				return err
			}
			return errors.Join(a.nodeView().list(a, changed), err)
		}),
	}
}

var forgettingView = view[api.Forgetting]{
	id: func(f api.Forgetting) string { return f.NodeID },
	columns: []column[api.Forgetting]{
		{"node", false, func(f api.Forgetting) string { return f.NodeID }},
		{"forgotten", false, func(f api.Forgetting) string {
			if f.DryRun {
				return "would be"
			}
			return "yes"
		}},
		{"replicas", false, func(f api.Forgetting) string { return fmt.Sprint(f.Replicas) }},
		{"lost", false, func(f api.Forgetting) string { return strings.Join(f.Lost, ",") }},
		{"sandboxes", false, func(f api.Forgetting) string { return strings.Join(f.Sandboxes, ",") }},
	},
}

func (a *app) nodeForget() *cobra.Command {
	var dryRun bool
	cmd := &cobra.Command{
		Use:   "forget NODE",
		Short: "Give up a node that is not coming back",
		Long: `Give up a node that is not coming back: its sandboxes have failed, its replicas are gone, and templates and snapshots that
were nowhere else are lost. A node that answers is not forgotten. --dry-run says what would be lost.`,
		Example:           "  spore node forget --dry-run node-2\n  spore node forget node-2",
		Args:              exactly(1),
		ValidArgsFunction: a.complete(nodes, nothing),
		RunE: a.with(func(cmd *cobra.Command, c *client.Client, args []string) error {
			f, err := c.ForgetNode(cmd.Context(), args[0], dryRun)
			if err != nil {
				return err
			}
			return forgettingView.one(a, *f)
		}),
	}
	dryRunFlag(cmd, &dryRun)
	return cmd
}

func (a *app) storageView() view[api.NodeStorageStatus] {
	return view[api.NodeStorageStatus]{
		id: func(s api.NodeStorageStatus) string { return s.NodeID },
		columns: []column[api.NodeStorageStatus]{
			{"node", false, func(s api.NodeStorageStatus) string { return s.NodeID }},
			{"address", true, func(s api.NodeStorageStatus) string { return s.Address }},
			{"mode", false, func(s api.NodeStorageStatus) string { return string(s.Storage.Mode) }},
			{"full", false, func(s api.NodeStorageStatus) string { return fmt.Sprintf("%d%%", s.Storage.UsagePct) }},
			{"used", false, func(s api.NodeStorageStatus) string { return size(s.Storage.UsedBytes) }},
			{"reserved", false, func(s api.NodeStorageStatus) string { return size(s.Storage.ReservedBytes) }},
			{"total", false, func(s api.NodeStorageStatus) string { return size(s.Storage.TotalBytes) }},
			{"limits", true, func(s api.NodeStorageStatus) string {
				l := s.Storage.Limits
				return fmt.Sprintf("%d,%d,%d", l.Warn, l.Reject, l.DeleteOnly)
			}},
			{"measured", false, func(s api.NodeStorageStatus) string { return a.age(s.Storage.LastUpdatedAt) }},
			{"error", false, func(s api.NodeStorageStatus) string { return s.Storage.LastError }},
		},
	}
}

func (a *app) nodeStorage() *cobra.Command {
	var refresh bool
	cmd := &cobra.Command{
		Use:   "storage",
		Short: "Say how full the nodes' disks are",
		Long: `Say how full the nodes' disks are, and what is still taken in: everything (healthy, warn), no new snapshots, templates and
replicas (reject), or nothing at all (delete_only).`,
		Example: "  spore node storage --refresh",
		Args:    exactly(0),
		RunE: a.with(func(cmd *cobra.Command, c *client.Client, _ []string) error {
			var found []api.NodeStorageStatus
			err := a.waiting(cmd.Context(), "measuring", func(ctx context.Context) (err error) {
				found, err = c.NodeStorage(ctx, refresh)
				return err
			})
			if err != nil {
				return err
			}
			return a.storageView().list(a, found)
		}),
	}
	cmd.Flags().BoolVar(&refresh, "refresh", false, "ask the nodes now")
	return cmd
}
