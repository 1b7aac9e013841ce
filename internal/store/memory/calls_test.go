package memory_test

import (
	"fmt"
	"time"

	"pgregory.net/rapid"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/store"
)

// What arguments are drawn from.
var (
	templateIDs   = []string{"tpl-a", "tpl-b", "tpl-c", "tpl-d", "snap-a", "snap-b"}
	names         = []string{"", "one", "two", "two-b"}
	tags          = []string{"latest", "v1"}
	sandboxIDs    = []string{"sa", "sb", "sc"}
	nodeIDs       = []string{"n1", "n2", "n3"}
	artifactIDs   = []string{"rfs-a", "rfs-b", "rfs-c"}
	jobIDs        = []string{"job-a", "job-b", "job-c", "job-d", "job-e"}
	controllerIDs = []string{"c1", "c2", "c3"}
	holders       = []string{"h1", "h2"}
	texts         = []string{"", "x", "ä\x00\xff\"'"}
	refs          = []string{"", "one", "two", "one:latest", "two:v1", "two-b", "two-b:v1", "tpl-a", "snap-a", "snap-z", "x:y:z", ":"}
	engines       = []string{"", "qemu"}

	templateStates = []spore.TemplateStatus{
		spore.TemplatePending, spore.TemplateCreating, spore.TemplateReady, spore.TemplateReady, spore.TemplatePartiallyReady,
		spore.TemplateFailed, spore.TemplateDeleting, spore.TemplateDeleted,
	}
	templateKinds  = []spore.TemplateKind{spore.KindTemplate, spore.KindSnapshot}
	sandboxStates  = []spore.SandboxState{spore.SandboxCreating, spore.SandboxRunning, spore.SandboxPaused, spore.SandboxFailed, spore.SandboxKilled}
	refStates      = []spore.RuntimeRefStatus{spore.RefReserved, spore.RefActive, spore.RefReleased}
	jobStates      = []spore.JobStatus{spore.JobPending, spore.JobPending, spore.JobRunning, spore.JobReady, spore.JobFailed, spore.JobCancelled}
	artifactStates = []spore.ArtifactStatus{
		spore.ArtifactPending, spore.ArtifactBuilding, spore.ArtifactReady, spore.ArtifactFailed,
		spore.ArtifactCleanupPending, spore.ArtifactCleanupPending, spore.ArtifactOrphaned,
	}
	replicaPhases = []spore.ReplicaPhase{
		spore.ReplicaPending, spore.ReplicaDistributing, spore.ReplicaDistributed, spore.ReplicaSnapshotting, spore.ReplicaPhaseReady,
		spore.ReplicaPhaseFailed, spore.ReplicaCleaning,
	}
	nodeStates = []spore.NodeState{spore.NodeReady, spore.NodeUnreachable, spore.NodeForgotten}
	operations = []spore.Operation{
		spore.OpCreate, spore.OpRedo, spore.OpFork, spore.OpSnapshotRollback, spore.OpReplicate, spore.OpDelete,
	}
	policies = []spore.CompatPolicy{"", spore.PolicyStrict, spore.PolicyGuestOnly}
	verdicts = []spore.CompatStatus{"", spore.CompatOK, spore.CompatStale, spore.CompatUnknown, spore.CompatMissing}
	labels   = []map[string]string{nil, {}, {"a": "1"}, {"a": "2"}, {"a": "1", "b": "2"}, {"odd.key $[0]\"'": "%_"}}
	counts   = []int{0, 0, 1, 2, -1}
)

var moment = time.Date(2026, 3, 4, 5, 6, 7, 8, time.FixedZone("east", 3600))

// aTime is one of few moments, or none, or one that is far off.
func aTime(rt *rapid.T) time.Time {
	switch n := rapid.IntRange(-2, 6).Draw(rt, "time"); n {
	case -2:
		return time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC)
	case -1:
		return time.Time{}
	default:
		return moment.Add(time.Duration(n) * time.Second)
	}
}

// mostly is a value of a pool, and now and then one that there is not.
func mostly[S ~string](rt *rapid.T, pool []S) S {
	if rapid.IntRange(1, 30).Draw(rt, "bad at 30") == 30 {
		return "BAD"
	}
	return one(rt, pool)
}

// seldom is a value other than the usual one now and then.
func seldom[T any](rt *rapid.T, usual T, others ...T) T {
	if rapid.IntRange(1, 20).Draw(rt, "usual but at 20") == 20 {
		return one(rt, others)
	}
	return usual
}

// maybe is a value from a pool, or none, to be matched by all.
func maybe[T any](rt *rapid.T, pool []T) (none T) {
	if rapid.IntRange(1, 4).Draw(rt, "filtered at 4") == 4 {
		return one(rt, pool)
	}
	return none
}

func few[T any](rt *rapid.T, pool []T) []T {
	if rapid.Bool().Draw(rt, "any") {
		return nil
	}
	return rapid.SliceOfN(rapid.SampledFrom(pool), 0, 3).Draw(rt, "some")
}

func aTemplate(rt *rapid.T) spore.Template {
	text := one(rt, texts)
	return spore.Template{
		ID: seldom(rt, one(rt, templateIDs), ""), Name: one(rt, names), Kind: mostly(rt, templateKinds), Status: mostly(rt, templateStates),
		Image: spore.Image{Reference: "r", Digest: "d", Platform: "p"}, ArtifactID: one(rt, append(artifactIDs, "")), KernelID: "k",
		EgressCA:  spore.EgressCA{Baked: rapid.Bool().Draw(rt, "baked"), Fingerprint: "f", TargetsWritten: one(rt, counts)},
		Resources: spore.Resources{VCPUs: 1, MemoryMiB: 2, DiskMiB: 3}, Process: aProcess(rt),
		Readiness: spore.Readiness{Command: one(rt, [][]string{nil, {}, {"true"}}), TCPPort: 1, HTTPPath: "/", HTTPPort: 2, Timeout: time.Second},
		Version:   "v2", Engine: one(rt, engines), StorageBackend: "layers", DisplayName: one(rt, append(names, text)), Retain: rapid.Bool().Draw(rt, "retain"),
		Policy: one(rt, policies),
		Replicas: spore.ReplicaPolicy{
			Nodes: one(rt, [][]string{nil, {}, {"n1"}}), Selector: one(rt, labels), Min: one(rt, counts), Max: 5, Pinned: rapid.Bool().Draw(rt, "pinned"),
		},
		RootfsSizeBytes: 7, Request: one(rt, [][]byte{nil, {}, []byte(`{"a":1}`)}), Author: text, Reason: text,
		ParentID: one(rt, append(templateIDs, "")), OriginSandbox: one(rt, append(sandboxIDs, "")), OriginNode: one(rt, nodeIDs),
		Ephemeral: seldom(rt, false, true), Labels: one(rt, labels), MemoryBytes: 1 << 40, DiskBytes: 9, LastError: text, JobID: one(rt, jobIDs),
		CreatedAt: aTime(rt), UpdatedAt: aTime(rt),
	}
}

func aProcess(rt *rapid.T) spore.Process {
	return spore.Process{
		Entrypoint: one(rt, [][]string{nil, {}, {"a", "b"}}), Cmd: one(rt, [][]string{nil, {"'ä\x00\""}}), Env: []string{"A=B"},
		User: "u", WorkDir: "w", StopSignal: "s",
	}
}

func aReplica(rt *rapid.T) spore.Replica {
	return spore.Replica{
		TemplateID: one(rt, templateIDs), NodeID: one(rt, nodeIDs), Status: one(rt, []spore.ReplicaStatus{spore.ReplicaReady, spore.ReplicaFailed}),
		Phase: mostly(rt, replicaPhases), ArtifactID: one(rt, append(artifactIDs, "")), LastJobID: one(rt, jobIDs),
		LastErrorPhase: seldom(rt, "", "BAD", spore.ReplicaPending, spore.ReplicaCleaning), ErrorMessage: one(rt, texts), CleanupRequired: rapid.Bool().Draw(rt, "dirty"),
		Attempts: one(rt, counts), RetryAt: aTime(rt),
		Bound:        spore.Components{GuestImage: "g", Agent: "a", Kernel: "k", Engine: "e", StateFormat: "s", CPU: "c"},
		CompatStatus: seldom(rt, one(rt, verdicts), "BAD"), CompatPolicy: seldom(rt, one(rt, policies), "BAD"), CompatCheckedAt: aTime(rt),
		VerifiedAt: aTime(rt), UpdatedAt: aTime(rt),
	}
}

func anArtifact(rt *rapid.T) spore.Artifact {
	return spore.Artifact{
		ID: seldom(rt, one(rt, artifactIDs), ""), Status: mostly(rt, artifactStates), Image: spore.Image{Reference: "r", Digest: "d", Platform: "p"},
		Process: aProcess(rt), EgressCA: spore.EgressCA{Baked: true, Fingerprint: "f", TargetsWritten: 1}, Digest: "sha256:0", SizeBytes: 5,
		BuildJobID: one(rt, jobIDs), LastError: one(rt, texts), UnusedAt: aTime(rt), TriedAt: aTime(rt), CreatedAt: aTime(rt), UpdatedAt: aTime(rt),
	}
}

func aSandbox(rt *rapid.T) spore.Sandbox {
	return spore.Sandbox{
		ID: seldom(rt, one(rt, sandboxIDs), ""), State: mostly(rt, sandboxStates), StateReason: one(rt, texts), TemplateID: one(rt, templateIDs),
		NodeID: one(rt, nodeIDs), Generation: one(rt, counts), Resources: spore.Resources{VCPUs: 1, MemoryMiB: 2, DiskMiB: 3},
		Labels: one(rt, labels), Env: one(rt, labels), Cold: rapid.Bool().Draw(rt, "cold"), Origin: one(rt, jobIDs), FrozenID: "f",
		CreatedAt: aTime(rt), UpdatedAt: aTime(rt), EndsAt: aTime(rt), OnEnd: seldom(rt, spore.EndKill, spore.EndPause, "", "bad"),
	}
}

func aRef(rt *rapid.T) spore.RuntimeRef {
	return spore.RuntimeRef{
		ID: int64(rapid.IntRange(0, 4).Draw(rt, "id")), TemplateID: one(rt, templateIDs), SandboxID: one(rt, sandboxIDs), NodeID: one(rt, nodeIDs),
		Binding: spore.BindingMemoryBacking, SandboxGen: one(rt, counts), Status: mostly(rt, refStates), Reason: one(rt, texts), AttachedAt: aTime(rt),
		ReleasedAt: aTime(rt), LeaseUntil: aTime(rt), LastSeenAt: aTime(rt), LastError: one(rt, texts),
	}
}

func aJob(rt *rapid.T) spore.Job {
	return spore.Job{
		ID: seldom(rt, one(rt, jobIDs), ""), Operation: mostly(rt, operations), ResourceType: seldom(rt, spore.KindTemplate, "", "bad"),
		ResourceID: one(rt, []string{"", "tpl-a", "tpl-b"}), SandboxID: one(rt, append(sandboxIDs, "")), Status: mostly(rt, jobStates), RequestID: "r",
		NodeID: one(rt, append(nodeIDs, "")), ArtifactID: one(rt, append(artifactIDs, "")), Owner: one(rt, append(controllerIDs, "")),
		Redo:  spore.RedoPlan{Mode: spore.RedoNodes, Scope: one(rt, [][]string{nil, {}, {"n1"}}), ResumePhase: spore.PhasePulling},
		Nodes: spore.NodeCounts{Expected: 3, Ready: 2, Failed: 1}, Phase: spore.PhaseReady, Progress: seldom(rt, 12, 101, -1, 100),
		Pull: spore.PullProgress{BytesTotal: 9, BytesDone: 8, LayersTotal: 7, LayersDone: 6, BytesPerSecond: 5}, AttemptNo: 2, RetryOfJobID: "j",
		Error:   one(rt, []*spore.JobError{nil, {Code: spore.CodeBusy, Message: "m", Field: "f", Hint: "h", Reason: spore.ReasonInUse}}),
		Request: one(rt, [][]byte{nil, {}, []byte("{}")}), Result: one(rt, [][]byte{nil, []byte("{}")}), CancelAsked: rapid.Bool().Draw(rt, "asked"),
		CreatedAt: aTime(rt), StartedAt: aTime(rt), FinishedAt: aTime(rt),
	}
}

func aNode(rt *rapid.T) spore.Node {
	return spore.Node{
		ID: seldom(rt, one(rt, nodeIDs), ""), Address: "a", State: mostly(rt, nodeStates), StateReason: one(rt, texts), Draining: rapid.Bool().Draw(rt, "draining"),
		Labels: one(rt, labels), Engine: "e", Components: spore.Components{GuestImage: "g", CPU: "c"},
		Installed: one(rt, [][]spore.Components{nil, {}, {{GuestImage: "g2", Agent: "a", Kernel: "k"}}}), VCPUs: 1, MemoryMiB: 2, MemoryPromisedMiB: 3, Sandboxes: 4,
		Storage: spore.NodeStorage{
			TotalBytes: 1 << 50, UsedBytes: 2, ReservedBytes: 3, Mode: spore.StorageWarn, Limits: spore.DefaultStorageLimits, LastError: "l", MeasuredAt: aTime(rt),
		},
		CreatedAt: aTime(rt), UpdatedAt: aTime(rt), SeenAt: aTime(rt),
	}
}

func anAlias(rt *rapid.T) spore.Alias {
	return spore.Alias{
		Name: one(rt, names[1:]), Tag: one(rt, tags), TemplateID: one(rt, templateIDs), Author: one(rt, texts), Reason: one(rt, texts), UpdatedAt: aTime(rt),
	}
}

func aReplay(rt *rapid.T) store.Replay {
	return store.Replay{Caller: one(rt, holders), Key: one(rt, tags), Digest: one(rt, names), ResourceID: one(rt, sandboxIDs), CreatedAt: aTime(rt)}
}

func aLine(rt *rapid.T) spore.LogLine {
	return spore.LogLine{Seq: 99, Time: aTime(rt), Level: seldom(rt, "info", "warn", "error", "bad"), Message: one(rt, texts)}
}

func aLease(rt *rapid.T) store.Lease {
	return store.Lease{Name: one(rt, []string{"leader", "sandbox/a", "sandbox/b"}), Holder: one(rt, holders), Controller: one(rt, controllerIDs), Until: aTime(rt)}
}

// timed makes a kind of call that takes a time.
func timed(name string, do func(tx store.Tx, at time.Time) (any, error)) kind {
	return kind{name, func(rt *rapid.T) call {
		at := aTime(rt)
		return call{fmt.Sprint(at), func(tx store.Tx) (any, error) { return do(tx, at) }}
	}}
}
