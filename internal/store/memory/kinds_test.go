package memory_test

import (
	"fmt"
	"time"

	"pgregory.net/rapid"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/store"
)

// kinds are the methods of a transaction, all of them, by what they are about.
var kinds = map[string][]kind{
	"templates": {
		writes("InsertTemplate", aTemplate, store.Tx.InsertTemplate),
		writes("UpdateTemplate", aTemplate, store.Tx.UpdateTemplate),
		asks("Template", func(tx store.Tx, a []string) (any, error) { return tx.Template(a[0]) }, templateIDs),
		asks("FindTemplate", func(tx store.Tx, a []string) (any, error) { return tx.FindTemplate(a[0]) }, refs),
		lists("Templates", templateFilter, func(f *store.TemplateFilter) *store.Paging { return &f.Paging }, store.Tx.Templates),
		{"CountTemplates", func(rt *rapid.T) call {
			f, limit := templateFilter(rt), one(rt, []int{0, 1, 2, 100, -1})
			return call{fmt.Sprintf("%+v %d", f, limit), func(tx store.Tx) (any, error) { return tx.CountTemplates(f, limit) }}
		}},
	},
	"aliases": {
		writes("PutAlias", anAlias, func(tx store.Tx, a *spore.Alias) error { return tx.PutAlias(*a) }),
		writes("DeleteAlias", anAlias, func(tx store.Tx, a *spore.Alias) error { return tx.DeleteAlias(*a) }),
		asks("Alias", func(tx store.Tx, a []string) (any, error) { return tx.Alias(a[0], a[1]) }, names, tags),
		lists("Aliases", func(rt *rapid.T) store.AliasFilter {
			return store.AliasFilter{Name: maybe(rt, names), TemplateID: maybe(rt, templateIDs)}
		}, func(f *store.AliasFilter) *store.Paging { return &f.Paging }, store.Tx.Aliases),
		{"AliasHistory", func(rt *rapid.T) call {
			name, tag, limit := one(rt, names), one(rt, append(tags, "")), one(rt, []int{0, 1, 2, 100, -1})
			return call{fmt.Sprintf("%q %q %d", name, tag, limit), func(tx store.Tx) (any, error) { return tx.AliasHistory(name, tag, limit) }}
		}},
	},
	"replicas": {
		writes("PutReplica", aReplica, store.Tx.PutReplica),
		asks("Replica", func(tx store.Tx, a []string) (any, error) { return tx.Replica(a[0], a[1]) }, templateIDs, nodeIDs),
		asks("Replicas", func(tx store.Tx, a []string) (any, error) { return tx.Replicas(a[0]) }, templateIDs),
		lists("ReplicaPage", func(rt *rapid.T) store.ReplicaFilter {
			return store.ReplicaFilter{
				NodeID: maybe(rt, nodeIDs), Status: maybe(rt, []spore.ReplicaStatus{spore.ReplicaReady, spore.ReplicaFailed}),
				Phase: maybe(rt, replicaPhases), Compat: maybe(rt, verdicts),
			}
		}, func(f *store.ReplicaFilter) *store.Paging { return &f.Paging }, store.Tx.ReplicaPage),
		asks("DeleteReplica", func(tx store.Tx, a []string) (any, error) { return nil, tx.DeleteReplica(a[0], a[1]) }, templateIDs, nodeIDs),
	},
	"artifacts": {
		writes("PutArtifact", anArtifact, store.Tx.PutArtifact),
		asks("Artifact", func(tx store.Tx, a []string) (any, error) { return tx.Artifact(a[0]) }, artifactIDs),
		lists("Artifacts", func(rt *rapid.T) store.ArtifactFilter {
			return store.ArtifactFilter{Statuses: few(rt, artifactStates), UnusedBefore: maybeTime(rt), Fair: rapid.Bool().Draw(rt, "fair")}
		}, func(f *store.ArtifactFilter) *store.Paging { return &f.Paging }, store.Tx.Artifacts),
		asks("DeleteArtifact", func(tx store.Tx, a []string) (any, error) { return nil, tx.DeleteArtifact(a[0]) }, artifactIDs),
		asks("ArtifactUsers", func(tx store.Tx, a []string) (any, error) { return tx.ArtifactUsers(a[0]) }, append(artifactIDs, "")),
		writes("PutPlacement", func(rt *rapid.T) spore.Placement {
			return spore.Placement{ArtifactID: one(rt, artifactIDs), NodeID: seldom(rt, one(rt, nodeIDs), ""), VerifiedAt: aTime(rt), CreatedAt: aTime(rt)}
		}, func(tx store.Tx, p *spore.Placement) error { return tx.PutPlacement(*p) }),
		asks("Placements", func(tx store.Tx, a []string) (any, error) { return tx.Placements(a[0], a[1]) }, append(artifactIDs, ""), append(nodeIDs, "")),
		asks("DeletePlacement", func(tx store.Tx, a []string) (any, error) { return nil, tx.DeletePlacement(a[0], a[1]) }, artifactIDs, nodeIDs),
	},
	"sandboxes": {
		writes("InsertSandbox", aSandbox, store.Tx.InsertSandbox),
		writes("UpdateSandbox", aSandbox, store.Tx.UpdateSandbox),
		asks("Sandbox", func(tx store.Tx, a []string) (any, error) { return tx.Sandbox(a[0]) }, sandboxIDs),
		lists("Sandboxes", func(rt *rapid.T) store.SandboxFilter {
			return store.SandboxFilter{
				States: few(rt, sandboxStates), TemplateID: maybe(rt, templateIDs), NodeID: maybe(rt, nodeIDs), Labels: maybe(rt, labels),
				EndsBefore: maybeTime(rt), Killed: rapid.Bool().Draw(rt, "killed"),
			}
		}, func(f *store.SandboxFilter) *store.Paging { return &f.Paging }, store.Tx.Sandboxes),
		timed("PurgeSandboxes", func(tx store.Tx, at time.Time) (any, error) { return tx.PurgeSandboxes(at) }),
	},
	"runtime refs": {
		writes("PutRef", aRef, store.Tx.PutRef),
		{"Refs", func(rt *rapid.T) call {
			f := refFilter(rt)
			return call{fmt.Sprintf("%+v", f), func(tx store.Tx) (any, error) { return tx.Refs(f) }}
		}},
		{"CountRefs", func(rt *rapid.T) call {
			f := refFilter(rt)
			return call{fmt.Sprintf("%+v", f), func(tx store.Tx) (any, error) { return tx.CountRefs(f) }}
		}},
	},
	"jobs": {
		writes("InsertJob", aJob, store.Tx.InsertJob),
		writes("UpdateJob", aJob, store.Tx.UpdateJob),
		asks("Job", func(tx store.Tx, a []string) (any, error) { return tx.Job(a[0]) }, jobIDs),
		lists("Jobs", func(rt *rapid.T) store.JobFilter {
			return store.JobFilter{
				Statuses: few(rt, jobStates), Operation: maybe(rt, operations), ResourceID: maybe(rt, templateIDs), SandboxID: maybe(rt, sandboxIDs),
				NodeID: maybe(rt, nodeIDs), Owner: maybe(rt, controllerIDs),
			}
		}, func(f *store.JobFilter) *store.Paging { return &f.Paging }, store.Tx.Jobs),
		asks("ActiveJob", func(tx store.Tx, a []string) (any, error) { return tx.ActiveJob(a[0]) }, append(templateIDs, "")),
		{"AppendJobLog", func(rt *rapid.T) call {
			id, line := one(rt, jobIDs), aLine(rt)
			return call{fmt.Sprintf("%s %+v", id, line), func(tx store.Tx) (any, error) { return nil, tx.AppendJobLog(id, line) }}
		}},
		{"JobLog", func(rt *rapid.T) call {
			id, after, limit := one(rt, jobIDs), int64(one(rt, counts)), one(rt, counts)
			return call{fmt.Sprint(id, after, limit), func(tx store.Tx) (any, error) { return tx.JobLog(id, after, limit) }}
		}},
		{"Enqueue", func(rt *rapid.T) call {
			id, attempts := one(rt, jobIDs), one(rt, counts)
			return call{fmt.Sprint(id, attempts), func(tx store.Tx) (any, error) { return nil, tx.Enqueue(id, attempts) }}
		}},
	},
	"replays": {
		asks("Replay", func(tx store.Tx, a []string) (any, error) { return tx.Replay(a[0], a[1]) }, holders, tags),
		writes("PutReplay", aReplay, func(tx store.Tx, r *store.Replay) error { return tx.PutReplay(*r) }),
		asks("DropReplay", func(tx store.Tx, a []string) (any, error) { return nil, tx.DropReplay(a[0]) }, sandboxIDs),
		timed("PurgeReplays", func(tx store.Tx, at time.Time) (any, error) { return tx.PurgeReplays(at) }),
	},
	"nodes": {
		writes("PutNode", aNode, store.Tx.PutNode),
		asks("Node", func(tx store.Tx, a []string) (any, error) { return tx.Node(a[0]) }, nodeIDs),
		{"Nodes", func(rt *rapid.T) call {
			forgotten := rapid.Bool().Draw(rt, "forgotten")
			return call{fmt.Sprint(forgotten), func(tx store.Tx) (any, error) { return tx.Nodes(forgotten) }}
		}},
	},
	"controllers": {
		{"Beat", func(rt *rapid.T) call {
			id, now := seldom(rt, one(rt, controllerIDs), ""), aTime(rt)
			return call{fmt.Sprint(id, now), func(tx store.Tx) (any, error) { return nil, tx.Beat(id, now) }}
		}},
		{"Controllers", func(*rapid.T) call {
			return call{"", func(tx store.Tx) (any, error) { return tx.Controllers() }}
		}},
		asks("Fence", func(tx store.Tx, a []string) (any, error) { return nil, tx.Fence(a[0]) }, controllerIDs),
		asks("Guard", func(tx store.Tx, a []string) (any, error) { return nil, tx.Guard(a[0]) }, controllerIDs),
		timed("PurgeControllers", func(tx store.Tx, at time.Time) (any, error) { return tx.PurgeControllers(at) }),
		{"TakeLease", func(rt *rapid.T) call {
			l, now := aLease(rt), aTime(rt)
			return call{fmt.Sprintf("%+v %s", l, now), func(tx store.Tx) (any, error) { return tx.TakeLease(l, now) }}
		}},
		{"RenewLeases", func(rt *rapid.T) call {
			l := aLease(rt)
			return call{fmt.Sprintf("%+v", l), func(tx store.Tx) (any, error) { return nil, tx.RenewLeases(l.Controller, l.Until) }}
		}},
		{"DropLease", func(rt *rapid.T) call {
			l := aLease(rt)
			return call{fmt.Sprintf("%+v", l), func(tx store.Tx) (any, error) { return nil, tx.DropLease(l.Name, l.Holder) }}
		}},
		asks("Leases", func(tx store.Tx, a []string) (any, error) { return tx.Leases(a[0]) }, append(controllerIDs, "")),
	},
}

func templateFilter(rt *rapid.T) store.TemplateFilter {
	return store.TemplateFilter{
		ID: maybe(rt, templateIDs), Kind: maybe(rt, templateKinds), Status: maybe(rt, templateStates), Name: maybe(rt, refs),
		OriginSandbox: maybe(rt, sandboxIDs), ParentID: maybe(rt, templateIDs), ArtifactID: maybe(rt, artifactIDs), Labels: maybe(rt, labels),
		CreatedBefore: maybeTime(rt), Ephemeral: rapid.Bool().Draw(rt, "ephemeral"), EphemeralOnly: seldom(rt, false, true),
		Deleted: rapid.Bool().Draw(rt, "deleted"),
	}
}

func refFilter(rt *rapid.T) store.RefFilter {
	return store.RefFilter{
		TemplateID: maybe(rt, templateIDs), SandboxID: maybe(rt, sandboxIDs), NodeID: maybe(rt, nodeIDs), Statuses: few(rt, refStates), Limit: one(rt, counts),
	}
}

func maybeTime(rt *rapid.T) time.Time {
	if rapid.Bool().Draw(rt, "any time") {
		return time.Time{}
	}
	return aTime(rt)
}
