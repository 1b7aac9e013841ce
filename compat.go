package spore

import (
	"slices"
	"strings"
	"time"
)

// Components are the versions that a frozen VM depends on. An empty field is unknown, but for CPU, where it means that
// nothing of the processor is used that others may lack.
type Components struct {
	GuestImage  string // the kernel bundle
	Agent       string
	Kernel      string
	Engine      string
	StateFormat string // what the engine's saved device state can be loaded by
	CPU         string // processor features in use

	// EngineVersion is for people: two versions that have one StateFormat are as good as each other.
	EngineVersion string
}

// CompatStatus says whether a replica fits its node's present components.
type CompatStatus string

const (
	CompatOK      CompatStatus = "OK"
	CompatStale   CompatStatus = "STALE"   // they differ; sandboxes cannot start from it there
	CompatUnknown CompatStatus = "UNKNOWN" // one side is not known; sandboxes may start
	CompatMissing CompatStatus = "MISSING" // no replica on a node that should have one; only in the matrix
)

// CompatPolicy says which components must agree.
type CompatPolicy string

const (
	PolicyStrict    CompatPolicy = "STRICT"     // all of them; the default
	PolicyGuestOnly CompatPolicy = "GUEST_ONLY" // the guest image only: the rest is left to the engine to refuse
)

// ParseCompatPolicy reads a policy; "" is STRICT.
func ParseCompatPolicy(field, s string) (CompatPolicy, error) {
	switch p := CompatPolicy(strings.ToUpper(s)); p {
	case "":
		return PolicyStrict, nil
	case PolicyStrict, PolicyGuestOnly:
		return p, nil
	}
	return "", Invalidf(field, "%q is not a policy", s).WithHint("STRICT or GUEST_ONLY")
}

// Serves says whether a VM frozen with bound can be thawed by a machine that has current as its own and, beside them, what is in
// installed; see Node.Installed. Machines hold guest images, and some of them engines, of several versions side by side, so a new one
// makes none of the old stale.
func (p CompatPolicy) Serves(bound, current Components, installed []Components) CompatStatus {
	if bound.GuestImage == "" || current.GuestImage == "" {
		return CompatUnknown
	}
	guest := &current
	if current.GuestImage != bound.GuestImage {
		at := slices.IndexFunc(installed, func(c Components) bool { return c.GuestImage == bound.GuestImage })
		if at < 0 {
			return CompatStale
		}
		guest = &installed[at]
	}
	if p == PolicyGuestOnly {
		return CompatOK
	}
	format := current.StateFormat
	if slices.ContainsFunc(installed, func(c Components) bool {
		return c.GuestImage == "" && c.Engine == bound.Engine && c.StateFormat == bound.StateFormat
	}) {
		format = bound.StateFormat
	}
	status := CompatOK
	for _, pair := range [][2]string{
		{bound.Agent, guest.Agent}, {bound.Kernel, guest.Kernel}, {bound.Engine, current.Engine}, {bound.StateFormat, format},
	} {
		switch {
		case pair[0] == "" || pair[1] == "":
			status = CompatUnknown
		case pair[0] != pair[1]:
			return CompatStale
		}
	}
	if bound.CPU != "" && bound.CPU != current.CPU {
		return CompatStale
	}
	return status
}

// CompatMatrix is every template beside every node.
type CompatMatrix struct {
	Summary   CompatSummary
	Templates []CompatRow
	Next      string // page token
}

// CompatSummary counts over the whole matrix, whatever the page.
type CompatSummary struct {
	StaleTemplates, StaleReplicas, AffectedNodes, MissingReplicas, UnknownReplicas int
}

// CompatRow is one template in the matrix. Overall is STALE if any node is, else MISSING, else UNKNOWN, else OK.
type CompatRow struct {
	TemplateID string
	Name       string
	Kind       TemplateKind
	Engine     string
	Overall    CompatStatus
	Nodes      []NodeCompat
}

// NodeCompat is one cell of the matrix.
type NodeCompat struct {
	NodeID      string
	NodeAddress string
	Status      CompatStatus
	Policy      CompatPolicy
	Bound       Components
	Current     Components
	Gap         Gap // of one that is STALE
	CheckedAt   time.Time
}
