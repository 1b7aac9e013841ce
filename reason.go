package spore

import (
	"fmt"
	"slices"
	"strings"
)

// Reason names one particular refusal within a Code. Reasons are part of the API, like codes.
type Reason string

const (
	ReasonTemplateNotFound   Reason = "template_not_found"
	ReasonSnapshotNotFound   Reason = "snapshot_not_found"
	ReasonOperationNotFound  Reason = "operation_not_found"
	ReasonTemplateIDRequired Reason = "template_id_required"
	ReasonStoreUnavailable   Reason = "store_unavailable"   // the database does not answer
	ReasonNoReadyReplica     Reason = "no_ready_replica"    // no node that may be used has it
	ReasonNoNodes            Reason = "no_nodes"            // no node matches
	ReasonDuplicate          Reason = "duplicate_template"  // the id or name is taken
	ReasonInProgress         Reason = "attempt_in_progress" // a rival job is at work on it
	ReasonStaleNeedsRedo     Reason = "stale_needs_redo"
	ReasonNothingFailed      Reason = "no_failed_replicas"
	ReasonReplicaIncomplete  Reason = "replica_incomplete"      // a replica's node is not known any more
	ReasonLocatorMissing     Reason = "cleanup_locator_missing" // bytes may lie on a node that is not known any more
	ReasonInUse              Reason = "template_in_use"
	ReasonFenced             Reason = "fenced" // this controller was declared dead
)

// StaleNeedsRedo is the refusal of a create when every READY replica was frozen with components that its node no longer
// has.
func StaleNeedsRedo(template string, nodes []string) *Error {
	nodes = slices.Sorted(slices.Values(nodes))
	return Errorf(CodeStale, "%s cannot be thawed on %s: it was frozen with components that are no longer there", template, strings.Join(nodes, ", ")).
		WithHint("spore template redo %s%s", template, redoNodes(nodes)).Because(ReasonStaleNeedsRedo)
}

func redoNodes(nodes []string) string {
	var b strings.Builder
	for _, n := range nodes {
		fmt.Fprintf(&b, " --node %s", n)
	}
	return b.String()
}
