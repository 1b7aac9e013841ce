package center

import (
	"slices"
	"testing"
	"time"

	"github.com/sporevm/spore"
)

func replica(node string, status spore.ReplicaStatus, why string) *spore.Replica {
	r := &spore.Replica{TemplateID: "tpl-1", NodeID: node, Status: status, Phase: spore.ReplicaPhaseReady, ErrorMessage: why}
	if status != spore.ReplicaReady {
		r.Phase = spore.ReplicaPhaseFailed
	}
	return r
}

func TestSummarise(t *testing.T) {
	ready := func(node string) *spore.Replica { return replica(node, spore.ReplicaReady, "") }
	failed := func(node, why string) *spore.Replica { return replica(node, spore.ReplicaFailed, why) }
	never := spore.Template{Status: spore.TemplateFailed, LastError: "the image is gone"}
	for name, c := range map[string]struct {
		t        spore.Template
		replicas []*spore.Replica
		status   spore.TemplateStatus
		err      string
	}{
		"one is enough":         {spore.Template{}, []*spore.Replica{ready("a")}, spore.TemplateReady, ""},
		"more than enough":      {spore.Template{}, []*spore.Replica{ready("a"), failed("b", "full")}, spore.TemplateReady, ""},
		"nowhere any more":      {spore.Template{Status: spore.TemplateReady}, nil, spore.TemplateFailed, "no node has it any more"},
		"all failed":            {spore.Template{}, []*spore.Replica{failed("a", ""), failed("b", "full"), failed("c", "lost")}, spore.TemplateFailed, "b: full"},
		"never was anywhere":    {never, nil, spore.TemplateFailed, "the image is gone"},
		"failed, then a reason": {never, []*spore.Replica{failed("a", "full")}, spore.TemplateFailed, "a: full"},
		"too few":               {spore.Template{Replicas: spore.ReplicaPolicy{Min: 3}}, []*spore.Replica{ready("a")}, spore.TemplatePartiallyReady, "1 of 3 replicas are ready"},
		"too few, and why":      {spore.Template{Replicas: spore.ReplicaPolicy{Min: 2}}, []*spore.Replica{ready("a"), failed("b", "full")}, spore.TemplatePartiallyReady, "b: full"},
		"as many as wanted":     {spore.Template{Replicas: spore.ReplicaPolicy{Min: 2}}, []*spore.Replica{ready("a"), ready("b")}, spore.TemplateReady, ""},
		"on the nodes named":    {spore.Template{Replicas: spore.ReplicaPolicy{Nodes: []string{"a", "b"}}}, []*spore.Replica{ready("b"), ready("a")}, spore.TemplateReady, ""},
		"on another than named": {spore.Template{Replicas: spore.ReplicaPolicy{Nodes: []string{"b"}}}, []*spore.Replica{ready("a")}, spore.TemplatePartiallyReady, "1 of 2 replicas are ready"},
	} {
		status, err := summarise(&c.t, c.replicas, wanted(c.t.Replicas))
		if status != c.status || err != c.err {
			t.Errorf("%s: %s, %q", name, status, err)
		}
	}
}

func TestRetentionJudge(t *testing.T) {
	now := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	snap := func(id string, age time.Duration, change ...func(*spore.Template)) *spore.Template {
		s := &spore.Template{ID: id, Kind: spore.KindSnapshot, Status: spore.TemplateReady, OriginSandbox: "s1", CreatedAt: now.Add(-age)}
		for _, f := range change {
			f(s)
		}
		return s
	}
	retained := func(s *spore.Template) { s.Retain = true }
	forked := func(s *spore.Template) { s.Ephemeral = true }
	broken := func(s *spore.Template) { s.Status = spore.TemplateFailed }
	underWay := func(s *spore.Template) { s.Status = spore.TemplateCreating }
	image := func(s *spore.Template) { s.Kind = spore.KindTemplate }
	other := func(s *spore.Template) { s.OriginSandbox = "s2" }
	for name, c := range map[string]struct {
		policy Retention
		snaps  []*spore.Template
		gone   []string
	}{
		"nothing asked for":           {Retention{}, []*spore.Template{snap("a", time.Hour), snap("b", 9999*time.Hour)}, nil},
		"the newest stay":             {Retention{KeepLast: 1}, []*spore.Template{snap("a", 1), snap("b", 2), snap("c", 3)}, []string{"b keep-last", "c keep-last"}},
		"of each sandbox":             {Retention{KeepLast: 1}, []*spore.Template{snap("a", 1), snap("b", 2, other)}, nil},
		"retained ones stay":          {Retention{KeepLast: 1}, []*spore.Template{snap("a", 1), snap("b", 2, retained), snap("c", 3)}, []string{"c keep-last"}},
		"retained ones count":         {Retention{KeepLast: 1}, []*spore.Template{snap("a", 1, retained), snap("b", 2)}, []string{"b keep-last"}},
		"forks' own do not count":     {Retention{KeepLast: 1}, []*spore.Template{snap("a", 1, forked), snap("b", 2)}, nil},
		"what is being made does not": {Retention{KeepLast: 1}, []*spore.Template{snap("a", 1, underWay), snap("b", 2)}, nil},
		"failed ones displace none":   {Retention{KeepLast: 1}, []*spore.Template{snap("a", 1, broken), snap("b", 2), snap("c", 3, broken)}, nil},
		"templates are no snapshots":  {Retention{KeepLast: 1, MaxAge: 1}, []*spore.Template{snap("a", 1), snap("b", 2, image)}, nil},
		"old ones go": {
			Retention{MaxAge: time.Hour},
			[]*spore.Template{snap("a", time.Hour), snap("b", time.Hour+1), snap("c", 2*time.Hour, broken), snap("d", 2*time.Hour, retained)},
			[]string{"b max-age", "c max-age"},
		},
		"both": {
			Retention{KeepLast: 2, MaxAge: time.Hour},
			[]*spore.Template{snap("a", 1), snap("b", 2*time.Hour), snap("c", 3*time.Hour)},
			[]string{"b max-age", "c keep-last"},
		},
	} {
		j := newJudge(c.policy, now)
		var gone []string
		for _, s := range c.snaps {
			if r := j.judge(s); r != nil {
				gone = append(gone, r.TemplateID+" "+r.Policy)
				if r.Detail == "" {
					t.Errorf("%s: %s goes without saying why", name, r.TemplateID)
				}
			}
		}
		if !slices.Equal(gone, c.gone) {
			t.Errorf("%s: %q go, not %q", name, gone, c.gone)
		}
	}
	for _, bad := range []Retention{{KeepLast: -1}, {MaxAge: -1}} {
		if spore.CodeOf(bad.Validate()) != spore.CodeInvalid {
			t.Errorf("%+v is taken", bad)
		}
	}
	for _, bad := range []Quota{{SnapshotsPerSandbox: -1}, {Templates: -1}, {Bytes: -1}} {
		if spore.CodeOf(bad.Validate()) != spore.CodeInvalid {
			t.Errorf("%+v is taken", bad)
		}
	}
}

func TestVerdict(t *testing.T) {
	v1 := spore.Components{GuestImage: "krn-1", Agent: "1", Kernel: "6", Engine: "sim", StateFormat: "f1", CPU: "avx"}
	v2 := spore.Components{GuestImage: "krn-2", Agent: "2", Kernel: "7", Engine: "sim", StateFormat: "f1", CPU: "avx"}
	node := func(c spore.Components, installed ...spore.Components) *spore.Node {
		return &spore.Node{ID: "a", State: spore.NodeReady, Components: c, Installed: installed}
	}
	without := func(c spore.Components, drop func(*spore.Components)) spore.Components { drop(&c); return c }
	for name, c := range map[string]struct {
		bound  spore.Components
		before spore.CompatStatus
		policy spore.CompatPolicy
		node   *spore.Node
		want   spore.CompatStatus
	}{
		"the same":                   {v1, spore.CompatUnknown, "", node(v1), spore.CompatOK},
		"another guest image":        {v1, spore.CompatOK, "", node(v2), spore.CompatStale},
		"both side by side":          {v1, spore.CompatOK, "", node(v2, v1), spore.CompatOK},
		"only the agent differs":     {without(v1, func(c *spore.Components) { c.Agent = "0" }), "", spore.PolicyStrict, node(v1), spore.CompatStale},
		"which GUEST_ONLY does not":  {without(v1, func(c *spore.Components) { c.Agent = "0" }), "", spore.PolicyGuestOnly, node(v1), spore.CompatOK},
		"nothing known of it":        {spore.Components{}, "", "", node(v1), spore.CompatUnknown},
		"nothing known of the node":  {v1, spore.CompatOK, "", node(spore.Components{}), spore.CompatUnknown},
		"which makes no STALE fresh": {v1, spore.CompatStale, "", node(spore.Components{}), spore.CompatStale},
		"no such node":               {v1, spore.CompatOK, "", nil, spore.CompatUnknown},
	} {
		r := &spore.Replica{Status: spore.ReplicaReady, Bound: c.bound, CompatStatus: c.before, CompatPolicy: c.policy}
		if got := verdict(r, c.node); got != c.want {
			t.Errorf("%s: %s", name, got)
		}
	}
}

func TestAdopt(t *testing.T) {
	own := spore.Components{GuestImage: "krn-2", Agent: "2", Kernel: "7", Engine: "sim", StateFormat: "f1", CPU: "avx"}
	older := spore.Components{GuestImage: "krn-1", Agent: "1", Kernel: "6"}
	for name, c := range map[string]struct {
		bound spore.Components
		state spore.NodeState
		own   spore.Components
		want  spore.Components // zero: not adopted
	}{
		"nothing is known":         {spore.Components{}, spore.NodeReady, own, own},
		"the agent is not":         {spore.Components{GuestImage: "krn-2", Kernel: "7", Engine: "sim", StateFormat: "f1"}, spore.NodeReady, own, spore.Components{GuestImage: "krn-2", Agent: "2", Kernel: "7", Engine: "sim", StateFormat: "f1"}},
		"an older guest image":     {spore.Components{GuestImage: "krn-1"}, spore.NodeReady, own, spore.Components{GuestImage: "krn-1", Agent: "1", Kernel: "6", Engine: "sim", StateFormat: "f1"}},
		"it is OK":                 {own, spore.NodeReady, own, spore.Components{}},
		"it is STALE":              {spore.Components{GuestImage: "krn-0"}, spore.NodeReady, own, spore.Components{}},
		"the node says nothing":    {spore.Components{}, spore.NodeReady, spore.Components{}, spore.Components{}},
		"the node says too little": {spore.Components{}, spore.NodeReady, spore.Components{GuestImage: "krn-2"}, spore.Components{}},
		"the node does not answer": {spore.Components{}, spore.NodeUnreachable, own, spore.Components{}},
	} {
		r := &spore.Replica{Status: spore.ReplicaReady, Bound: c.bound}
		n := &spore.Node{State: c.state, Components: c.own, Installed: []spore.Components{older}}
		did := adopt(r, n)
		switch {
		case did != (c.want != spore.Components{}):
			t.Errorf("%s: adopted: %v", name, did)
		case did && r.Bound != c.want:
			t.Errorf("%s: %+v", name, r.Bound)
		case !did && r.Bound != c.bound:
			t.Errorf("%s: it was changed all the same: %+v", name, r.Bound)
		}
	}
	if adopt(&spore.Replica{Status: spore.ReplicaFailed}, &spore.Node{State: spore.NodeReady, Components: own}) {
		t.Error("a replica was adopted that is not READY")
	}
}

func TestCompatRow(t *testing.T) {
	v1 := spore.Components{GuestImage: "krn-1", Agent: "1", Kernel: "6", Engine: "sim", StateFormat: "f1"}
	v2 := v1
	v2.GuestImage = "krn-2"
	nodes := map[string]*spore.Node{}
	for _, id := range []string{"a", "b", "c"} {
		nodes[id] = &spore.Node{ID: id, State: spore.NodeReady, Engine: "sim", Components: v1, MemoryMiB: 1024}
	}
	on := func(node string, bound spore.Components) *spore.Replica {
		r := replica(node, spore.ReplicaReady, "")
		r.Bound = bound
		return r
	}
	cleaning := replica("b", spore.ReplicaFailed, "")
	cleaning.Phase = spore.ReplicaCleaning
	for name, c := range map[string]struct {
		kind     spore.TemplateKind
		policy   spore.ReplicaPolicy
		replicas []*spore.Replica
		want     string // status of each cell, and overall
	}{
		"where it was made":         {"", spore.ReplicaPolicy{}, []*spore.Replica{on("a", v1)}, "a OK, OK"},
		"a snapshot of one node":    {spore.KindSnapshot, spore.ReplicaPolicy{}, []*spore.Replica{on("b", v1)}, "b OK, OK"},
		"meant for all":             {"", spore.ReplicaPolicy{Pinned: true}, []*spore.Replica{on("a", v1)}, "a OK, b MISSING, c MISSING, MISSING"},
		"meant for two":             {"", spore.ReplicaPolicy{Min: 2}, []*spore.Replica{on("c", v1)}, "a MISSING, c OK, MISSING"},
		"meant for named ones":      {"", spore.ReplicaPolicy{Nodes: []string{"a", "c"}}, []*spore.Replica{on("a", v1)}, "a OK, c MISSING, MISSING"},
		"its only one failed":       {"", spore.ReplicaPolicy{}, []*spore.Replica{replica("a", spore.ReplicaFailed, "full")}, "a MISSING, MISSING"},
		"one is being removed":      {"", spore.ReplicaPolicy{}, []*spore.Replica{on("a", v1), cleaning}, "a OK, OK"},
		"stale is the worst":        {"", spore.ReplicaPolicy{Pinned: true}, []*spore.Replica{on("a", v2), on("b", spore.Components{})}, "a STALE, b UNKNOWN, c MISSING, STALE"},
		"missing is worse than not": {"", spore.ReplicaPolicy{Pinned: true}, []*spore.Replica{on("a", v1), on("b", spore.Components{})}, "a OK, b UNKNOWN, c MISSING, MISSING"},
		"its node is not known":     {"", spore.ReplicaPolicy{}, []*spore.Replica{on("gone", v1)}, "UNKNOWN"},
	} {
		tpl := &spore.Template{ID: "tpl-1", Kind: c.kind, Status: spore.TemplateReady, Engine: "sim", Replicas: c.policy}
		row := compatRow(tpl, c.replicas, nodes)
		got := ""
		var sum compatSum
		sum.addRow(row)
		counts := map[spore.CompatStatus]int{}
		for _, cell := range row.Nodes {
			got += cell.NodeID + " " + string(cell.Status) + ", "
			counts[cell.Status]++
		}
		if got += string(row.Overall); got != c.want {
			t.Errorf("%s: %s", name, got)
		}
		want := spore.CompatSummary{
			StaleTemplates: min(counts[spore.CompatStale], 1), StaleReplicas: counts[spore.CompatStale], AffectedNodes: counts[spore.CompatStale],
			MissingReplicas: counts[spore.CompatMissing], UnknownReplicas: counts[spore.CompatUnknown],
		}
		if got := sum.summary(); got != want {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

func TestMeters(t *testing.T) {
	var m meters
	m.resolved([]StageTime{{stageRequest, 60 * time.Microsecond}, {stageLocality, 50 * time.Microsecond}, {stageBind, 10 * time.Second}, {"other", time.Second}})
	m.resolved([]StageTime{{stageRequest, 0}})
	got := map[string]Histogram{}
	for _, h := range m.read() {
		got[h.Name] = h
		var all uint64
		for _, n := range h.Counts {
			all += n
		}
		if all != h.Samples || len(h.Counts) != len(h.Bounds)+1 || !slices.IsSorted(h.Bounds) {
			t.Errorf("%+v", h)
		}
	}
	if len(got) != len(ResolveStages)+1 {
		t.Fatalf("there are %d", len(got))
	}
	at := func(h Histogram, bound int) uint64 { return h.Counts[bound] }
	if h := got[stageRequest]; h.Samples != 2 || at(h, 0) != 1 || at(h, 1) != 1 {
		t.Errorf("%+v", h)
	}
	if h := got[stageLocality]; h.Samples != 1 || at(h, 0) != 1 { // a bound belongs to what is below it
		t.Errorf("%+v", h)
	}
	if h := got[stageBind]; at(h, len(h.Bounds)) != 1 || h.Sum != 10 {
		t.Errorf("%+v", h)
	}
	if h := got[ResolveTotal]; h.Samples != 2 || h.Sum < 11 || h.Sum > 11.001 {
		t.Errorf("%+v", h)
	}
	if h := got[stageKind]; h.Samples != 0 {
		t.Errorf("%+v", h)
	}
}
