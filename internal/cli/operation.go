package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/sporevm/spore/api"
	"github.com/sporevm/spore/client"
)

func (a *app) operationView() view[api.SnapshotOperation] {
	return view[api.SnapshotOperation]{
		id: func(o api.SnapshotOperation) string { return o.OperationID },
		columns: []column[api.SnapshotOperation]{
			{"id", false, func(o api.SnapshotOperation) string { return o.OperationID }},
			{"operation", false, func(o api.SnapshotOperation) string { return o.Operation }},
			{"status", false, func(o api.SnapshotOperation) string { return string(o.Status) }},
			{"snapshot", false, func(o api.SnapshotOperation) string { return o.SnapshotID }},
			{"sandbox", false, func(o api.SnapshotOperation) string { return o.SandboxID }},
		},
	}
}

func (a *app) operationCommand() *cobra.Command {
	return newGroup("operation", "Look at what was done with a snapshot, also when it is gone", "  spore operation show job-5f1d7a84be3c90a1d2e4f607",
		&cobra.Command{
			Use:               "show ID",
			Aliases:           []string{"info"},
			Short:             "Show one operation on a snapshot: its job, as seen from the snapshot",
			Example:           "  spore operation show job-5f1d7a84be3c90a1d2e4f607",
			Args:              exactly(1),
			ValidArgsFunction: a.complete(jobs, nothing),
			RunE: a.with(func(cmd *cobra.Command, c *client.Client, args []string) error {
				o, err := c.GetOperation(cmd.Context(), args[0])
				if err != nil {
					return err
				}
				return a.operationView().details(a, *o, []detail{
					{"id", o.OperationID}, {"operation", o.Operation}, {"snapshot", o.SnapshotID}, {"sandbox", o.SandboxID}, {"resource", string(o.ResourceType) + " " + o.ResourceID},
					{"status", string(o.Status)}, {"phase", string(o.Phase)}, {"progress", fmt.Sprintf("%d%%", o.Progress)}, {"attempt", fmt.Sprint(o.AttemptNo)},
					{"retry of", o.RetryOfJobID}, {"request id", o.RequestID}, {"error", o.ErrorMessage},
				})
			}),
		})
}
