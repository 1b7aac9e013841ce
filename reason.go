package spore

import (
	"fmt"
	"maps"
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
	ReasonFenced             Reason = "fenced"               // this controller was declared dead
	ReasonNoNetworkMode      Reason = "network_mode_missing" // no node that could run it can connect it in that mode
)

// StaleNeedsRedo is the refusal of a create when every READY replica was frozen with components that its node no longer
// has: what of them is missing, by the node's id.
func StaleNeedsRedo(template string, gaps map[string]Gap) *Error {
	nodes := slices.Sorted(maps.Keys(gaps))
	why := ""
	whys := byText(nodes, func(id string) string { return gaps[id].Why })
	const few = 3
	for i, w := range whys {
		switch {
		case len(whys) == 1:
			why = w.text
		case i < few:
			why += "; on " + strings.Join(w.nodes, ", ") + " " + w.text
		case i == few:
			why += "; and so on"
		}
	}
	e := Errorf(CodeStale, "%s cannot be thawed on %s: %s", template, strings.Join(nodes, ", "), strings.TrimPrefix(why, "; "))
	e.Hint = "spore template redo " + template + redoNodes(nodes)
	for _, c := range byText(nodes, func(id string) string { return gaps[id].Cure }) {
		e.Hint += "; or install " + c.text + " on " + strings.Join(c.nodes, ", ") + ", beside what is there"
	}
	return e.Because(ReasonStaleNeedsRedo)
}

// said is what was said of some nodes.
type said struct {
	text  string
	nodes []string
}

// byText puts those of nodes together of which the same is said; those of which nothing is are left out.
func byText(nodes []string, of func(id string) string) (all []said) {
	for _, id := range nodes {
		text := of(id)
		if text == "" {
			continue
		}
		at := slices.IndexFunc(all, func(s said) bool { return s.text == text })
		if at < 0 {
			at, all = len(all), append(all, said{text: text})
		}
		all[at].nodes = append(all[at].nodes, id)
	}
	return all
}

func redoNodes(nodes []string) string {
	var b strings.Builder
	for _, n := range nodes {
		fmt.Fprintf(&b, " --node %s", n)
	}
	return b.String()
}

// NoNetworkMode is the refusal to connect what starts from a template in a mode that no node that could otherwise run it has: why not,
// as far as that is known, by the node's id.
func NoNetworkMode(template string, mode NetworkMode, whyNot map[string]string) *Error {
	nodes := slices.Sorted(maps.Keys(whyNot))
	e := Errorf(CodeUnsupported, "%s cannot be connected in mode %s on %s", template, mode, strings.Join(nodes, ", "))
	for i, w := range byText(nodes, func(id string) string { return whyNot[id] }) {
		e.Message += []string{": ", "; "}[min(i, 1)]
		if len(w.nodes) < len(nodes) {
			e.Message += strings.Join(w.nodes, ", ") + ": "
		}
		e.Message += w.text
	}
	e.Field = "network.mode"
	return e.WithHint("see which node has which modes: spore node ls -o wide").Because(ReasonNoNetworkMode)
}
