package cli

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/sporevm/spore/api"
	"github.com/sporevm/spore/client"
)

func (a *app) sandboxSet() *cobra.Command {
	var egress egressFlags
	var limits api.Limits
	var labels mapFlag
	var unlabel []string
	cmd := &cobra.Command{
		Use:   "set SANDBOX",
		Short: "Change what a sandbox may reach, its limits and its labels, while it runs",
		Long: `Change what a sandbox may reach, its limits and its labels. What is not named stays as it is. A list that is given takes
the place of the one before; the word none takes all away. A limit of 0 is no limit. When the sandbox cannot be changed as asked,
nothing is. What a paused sandbox is given holds from when it is resumed. A proxy may be reached at once, and is named to commands
from the next resume or rollback on.`,
		Example: `  spore sandbox set s0a1b2c3d4e5f60718293 --internet off --allow-domain example.com
  spore sandbox set s0a1b2c3d4e5f60718293 --cpus 0.5 --disk-mbps 0
  spore sandbox set s0a1b2c3d4e5f60718293 --label team=red --unlabel trial`,
		Args:              exactly(1),
		ValidArgsFunction: a.complete(sandboxes, nothing),
		RunE: a.with(func(cmd *cobra.Command, c *client.Client, args []string) error {
			req := api.SandboxUpdate{Egress: egress.update(cmd)}
			given := cmd.Flags().Changed
			if given("cpus") {
				req.Limits.CPUs = &limits.CPUs
			}
			for name, l := range map[string]struct {
				to   **int
				from *int
			}{
				"disk-mbps": {&req.Limits.DiskMBps, &limits.DiskMBps}, "disk-iops": {&req.Limits.DiskIOPS, &limits.DiskIOPS},
				"net-in-mbps": {&req.Limits.NetworkInMbps, &limits.NetworkInMbps}, "net-out-mbps": {&req.Limits.NetworkOutMbps, &limits.NetworkOutMbps},
			} {
				if given(name) {
					*l.to = l.from
				}
			}
			if changed(cmd, labelChanges) {
				all, err := relabelled(cmd, c, args[0], labels.values, unlabel)
				if err != nil {
					return err
				}
				req.Labels = &all
			}
			if req.Labels == nil && req.Limits == (api.LimitsUpdate{}) && req.Egress == (api.EgressUpdate{}) {
				return usage(cmd, errors.New("nothing is to be changed"))
			}
			s, err := c.UpdateSandbox(making(cmd.Context()), args[0], req)
			if err != nil {
				return err
			}
			return a.sandboxView().one(a, *s)
		}),
	}
	egress.add(cmd, "")
	f := cmd.Flags()
	f.Float64Var(&limits.CPUs, "cpus", 0, "processors' worth of time that it may take, such as 0.5")
	f.IntVar(&limits.DiskMBps, "disk-mbps", 0, "megabytes a second of each disk, read and written")
	f.IntVar(&limits.DiskIOPS, "disk-iops", 0, "reads and writes a second of each disk")
	f.IntVar(&limits.NetworkInMbps, "net-in-mbps", 0, "megabits a second to it")
	f.IntVar(&limits.NetworkOutMbps, "net-out-mbps", 0, "megabits a second from it")
	f.Var(&labels, "label", "label to attach or change: KEY=VALUE")
	f.StringArrayVar(&unlabel, "unlabel", nil, "label to take away, by its key")
	return cmd
}

// relabelled is what the labels of a sandbox come to: on the wire they are replaced as a whole.
func relabelled(cmd *cobra.Command, c *client.Client, id string, set map[string]string, unset []string) (api.Labels, error) {
	s, err := c.GetSandbox(cmd.Context(), id)
	if err != nil {
		return nil, err
	}
	all := api.Labels{}
	for k, v := range s.Labels {
		all[k] = v
	}
	for _, k := range unset {
		if _, both := set[k]; both {
			return nil, usage(cmd, fmt.Errorf("label %s is to be set and taken away", k))
		}
		delete(all, k)
	}
	for k, v := range set {
		all[k] = v
	}
	return all, nil
}
