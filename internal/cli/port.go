package cli

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/api"
	"github.com/sporevm/spore/client"
)

var portView = view[api.Port]{
	id: func(p api.Port) string { return net.JoinHostPort(p.HostAddress, strconv.Itoa(p.HostPort)) },
	columns: []column[api.Port]{
		{"address", false, func(p api.Port) string { return p.HostAddress }},
		{"host", false, func(p api.Port) string { return fmt.Sprint(p.HostPort) }},
		{"guest", false, func(p api.Port) string { return fmt.Sprint(p.GuestPort) }},
		{"picked", true, func(p api.Port) string { return yes(p.Picked) }},
	},
}

func (a *app) portCommand() *cobra.Command {
	return newGroup("port", "Publish ports of sandboxes on the host", `  spore port add s0a1b2c3d4e5f60718293 8080:80
  spore port ls s0a1b2c3d4e5f60718293`,
		a.portList(), a.portAdd(), a.portRemove())
}

func (a *app) portList() *cobra.Command {
	return &cobra.Command{
		Use:               "ls SANDBOX",
		Aliases:           []string{"list"},
		Short:             "List the ports of a sandbox that are published on the host",
		Example:           "  spore port ls s0a1b2c3d4e5f60718293",
		Args:              exactly(1),
		ValidArgsFunction: a.complete(sandboxes, nothing),
		RunE: a.with(func(cmd *cobra.Command, c *client.Client, args []string) error {
			found, err := c.ListPorts(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return portView.list(a, found)
		}),
	}
}

func (a *app) portAdd() *cobra.Command {
	return &cobra.Command{
		Use:   "add SANDBOX [[ADDRESS:]HOST:]GUEST...",
		Short: "Publish ports of a sandbox on the host",
		Long: `Publish TCP ports of a sandbox on the host, all of them or none. Without a host port, or with 0, one that is free is picked.
Without an address it is that of the loopback. The sandbox needs no network for it, and a server inside may listen on its
loopback alone.`,
		Example:           "  spore port add s0a1b2c3d4e5f60718293 8080:80\n  spore port add s0a1b2c3d4e5f60718293 0.0.0.0:8443:443 5432",
		Args:              atLeast(2),
		ValidArgsFunction: a.complete(sandboxes, nothing),
		RunE: a.with(func(cmd *cobra.Command, c *client.Client, args []string) error {
			add := make([]api.PortSpec, len(args)-1)
			for i, arg := range args[1:] {
				var err error
				if add[i], err = parsePublish(arg); err != nil {
					return usage(cmd, fmt.Errorf("%s: %w", quote(arg), err))
				}
			}
			all, err := c.PublishPorts(making(cmd.Context()), args[0], add...)
			if err != nil {
				return err
			}
			return portView.list(a, all)
		}),
	}
}

func (a *app) portRemove() *cobra.Command {
	var dryRun bool
	cmd := &cobra.Command{
		Use:               "rm SANDBOX [ADDRESS:]HOST...",
		Short:             "Stop publishing ports of a sandbox",
		Long:              "Stop publishing ports of a sandbox, named by their ports on the host. Connections that go through them end.",
		Example:           "  spore port rm --dry-run s0a1b2c3d4e5f60718293 8080\n  spore port rm s0a1b2c3d4e5f60718293 8080",
		Args:              atLeast(2),
		ValidArgsFunction: a.completePorts,
		RunE: a.with(func(cmd *cobra.Command, c *client.Client, args []string) error {
			places := map[string]place{}
			for _, arg := range args[1:] {
				address, port, err := parsePlace(arg)
				if err != nil {
					return usage(cmd, fmt.Errorf("%s: %w", quote(arg), err))
				}
				places[arg] = place{address, port}
			}
			if dryRun {
				return a.planUnpublish(cmd.Context(), c, args[0], places)
			}
			var left []api.Port
			err := many(cmd.Context(), args[1:], func(arg string) error {
				ports, err := c.UnpublishPort(making(cmd.Context()), args[0], places[arg].address, places[arg].port)
				if err == nil {
					left = ports
				}
				return err
			})
			if err != nil {
				return err
			}
			return portView.list(a, left)
		}),
	}
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "change nothing; only say what would happen")
	return cmd
}

// place is a port of the host; address "" is every address.
type place struct {
	address string
	port    int
}

// planUnpublish lists the ports that would be unpublished.
func (a *app) planUnpublish(ctx context.Context, c *client.Client, sandbox string, places map[string]place) error {
	found, err := c.ListPorts(ctx, sandbox)
	if err != nil {
		return err
	}
	var gone []api.Port
	for _, p := range found {
		for _, at := range places {
			if p.HostPort == at.port && (at.address == "" || p.HostAddress == at.address) {
				gone = append(gone, p)
				break
			}
		}
	}
	if len(gone) == 0 {
		return spore.Errorf(spore.CodeNotFound, "sandbox %s publishes nothing there", sandbox).WithHint("see: spore port ls %s", sandbox)
	}
	fmt.Fprintln(a.Stderr, "would no longer be published:")
	return portView.list(a, gone)
}

// parsePlace reads [ADDRESS:]HOST.
func parsePlace(s string) (address string, port int, err error) {
	wrong := errors.New("write HOST or ADDRESS:HOST, such as 8080")
	before, host, two := cutLast(s, ":")
	if !two {
		host = s
	}
	if port, err = parsePort(host); err != nil || port == 0 {
		return "", 0, wrong
	}
	if two {
		if address, err = parseAddress(before); err != nil {
			return "", 0, wrong
		}
	}
	return address, port, nil
}

// completePorts completes a sandbox, and then the ports that it publishes.
func (a *app) completePorts(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
	if len(args) == 0 {
		return a.complete(sandboxes)(cmd, args, word)
	}
	return a.complete(func(ctx context.Context, c *client.Client) iter.Seq2[string, error] {
		return func(yield func(string, error) bool) {
			found, err := c.ListPorts(ctx, args[0])
			if err != nil {
				yield("", err)
				return
			}
			for _, p := range found {
				if !yield(described(fmt.Sprint(p.HostPort), fmt.Sprintf("%s -> %d", p.HostAddress, p.GuestPort)), nil) {
					return
				}
			}
		}
	})(cmd, args, word)
}
