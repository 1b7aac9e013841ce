package gateway

import (
	"cmp"
	"time"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/api"
	"github.com/sporevm/spore/internal/center"
)

// each converts a list; the wire knows empty lists but no null.
func each[N, W any](nouns []*N, convert func(*N) W) []W {
	out := make([]W, 0, len(nouns))
	for _, n := range nouns {
		out = append(out, convert(n))
	}
	return out
}

func list(s []string) []string {
	if s == nil {
		return []string{}
	}
	return s
}

func dict(m map[string]string) map[string]string {
	if m == nil {
		return map[string]string{}
	}
	return m
}

func buildRequest(b *api.BuildRequest) center.BuildRequest {
	return center.BuildRequest{
		Name:      b.Name,
		Image:     b.Image,
		Insecure:  b.Insecure,
		Resources: spore.Resources{VCPUs: b.VCPUs, MemoryMiB: b.MemoryMiB, DiskMiB: b.DiskMiB},
		Process: center.ProcessOverride{
			Entrypoint: b.Process.Entrypoint, Cmd: b.Process.Cmd, Env: b.Process.Env, User: b.Process.User, WorkDir: b.Process.WorkDir,
		},
		Readiness: spore.Readiness{
			Command: b.Readiness.Command, TCPPort: b.Readiness.TCPPort, HTTPPath: b.Readiness.HTTPPath, HTTPPort: b.Readiness.HTTPPort,
			// Bounded before it is multiplied; what is out of range stays out of range.
			Timeout: time.Duration(min(max(b.Readiness.TimeoutSeconds, -1), 1<<30)) * time.Second,
		},
		EgressCA:    []byte(b.EgressCA),
		KernelID:    b.KernelID,
		Labels:      b.Labels,
		DisplayName: b.DisplayName, Author: b.Author, Reason: b.Reason, Retain: b.Retain,
		Policy: b.CompatPolicy, Replicas: replicaPolicy(b.Replicas),
		Network: networkOf(b.Network), Defaults: createDefaults(b.Defaults),
	}
}

func networkOf(n *api.Network) *spore.Network {
	if n == nil {
		return nil
	}
	out := &spore.Network{Mode: n.Mode}
	if n.Egress != nil {
		out.Egress = egressOf(*n.Egress)
	}
	return out
}

func createDefaults(d api.CreateDefaults) spore.CreateDefaults {
	out := spore.CreateDefaults{TTLSeconds: int(d.TTLSeconds), OnEnd: d.OnEnd, Env: d.Env, Labels: d.Labels, Ports: portSpecs(d.Ports)}
	if l := limitsOf(d.Limits); l != (spore.Limits{}) {
		out.Limits = &l
	}
	return out
}

func replicaPolicy(p api.ReplicaPolicy) spore.ReplicaPolicy {
	return spore.ReplicaPolicy{Nodes: p.Nodes, Selector: p.Selector, Min: p.Min, Max: p.Max, Pinned: p.Pinned}
}

func image(i spore.Image) api.Image {
	return api.Image{Reference: i.Reference, Digest: i.Digest, Platform: i.Platform}
}

func egressCA(e spore.EgressCA) api.EgressCA {
	return api.EgressCA{Baked: e.Baked, Fingerprint: e.Fingerprint, TargetsWritten: e.TargetsWritten}
}

func process(p spore.Process) api.Process {
	return api.Process{
		Entrypoint: list(p.Entrypoint), Cmd: list(p.Cmd), Env: list(p.Env), User: p.User, WorkDir: p.WorkDir, StopSignal: p.StopSignal,
	}
}

func template(t *spore.Template) api.Template {
	return api.Template{
		ID: t.ID, Name: t.Name, Kind: t.Kind, Status: t.Status, Image: image(t.Image), ArtifactID: t.ArtifactID, KernelID: t.KernelID,
		EgressCA: egressCA(t.EgressCA),
		VCPUs:    t.Resources.VCPUs, MemoryMiB: t.Resources.MemoryMiB, DiskMiB: t.Resources.DiskMiB,
		Process: process(t.Process),
		Readiness: api.Readiness{
			Command: t.Readiness.Command, TCPPort: t.Readiness.TCPPort, HTTPPath: t.Readiness.HTTPPath, HTTPPort: t.Readiness.HTTPPort,
			TimeoutSeconds: int64(t.Readiness.Timeout / time.Second),
		},
		NIC:      t.NIC,
		ParentID: t.ParentID, OriginSandbox: t.OriginSandbox, OriginNode: t.OriginNode, Ephemeral: t.Ephemeral, Labels: dict(t.Labels),
		Version: t.Version, Engine: t.Engine, StorageBackend: t.StorageBackend, DisplayName: t.DisplayName, Retain: t.Retain,
		CompatPolicy: cmp.Or(t.Policy, spore.PolicyStrict),
		ReplicaPolicy: api.ReplicaPolicy{
			Nodes: t.Replicas.Nodes, Selector: t.Replicas.Selector, Min: t.Replicas.Min, Max: t.Replicas.Max, Pinned: t.Replicas.Pinned,
		},
		RootfsSizeBytes: t.RootfsSizeBytes, Author: t.Author, Reason: t.Reason,
		MemoryBytes: t.MemoryBytes, DiskBytes: t.DiskBytes, LastError: t.LastError, JobID: t.JobID,
		CreatedAt: t.CreatedAt.UTC(), UpdatedAt: t.UpdatedAt.UTC(),
	}
}

func templateDetails(d *center.TemplateDetails, withRequest bool) api.Template {
	out := template(d.Template)
	out.Replicas, out.Aliases = each(d.Replicas, replica), each(d.Aliases, alias)
	out.RefCount, out.RefSandboxes = &d.RefCount, list(d.HeldBy)
	if d.Artifact != nil {
		a := artifact(d.Artifact)
		out.Artifact = &a
	}
	if d.Job != nil {
		j := job(d.Job)
		out.Job = &j
	}
	if withRequest {
		out.Request = d.Template.Request
	}
	return out
}

func replica(r *spore.Replica) api.Replica {
	return api.Replica{
		TemplateID: r.TemplateID, NodeID: r.NodeID, Status: r.Status, Phase: r.Phase, ArtifactID: r.ArtifactID, LastJobID: r.LastJobID,
		LastErrorPhase: r.LastErrorPhase, ErrorMessage: r.ErrorMessage, CleanupRequired: r.CleanupRequired, Attempts: r.Attempts,
		RetryAt: utc(r.RetryAt), Bound: components(r.Bound), CompatStatus: r.CompatStatus, CompatPolicy: r.CompatPolicy,
		CompatCheckedAt: utc(r.CompatCheckedAt), VerifiedAt: utc(r.VerifiedAt), UpdatedAt: r.UpdatedAt.UTC(),
	}
}

func runtimeRef(r *spore.RuntimeRef) api.RuntimeRef {
	return api.RuntimeRef{
		ID: r.ID, TemplateID: r.TemplateID, SandboxID: r.SandboxID, NodeID: r.NodeID, Binding: r.Binding, Generation: r.SandboxGen,
		Status: r.Status, Reason: r.Reason, AttachedAt: r.AttachedAt.UTC(), ReleasedAt: utc(r.ReleasedAt), LeaseUntil: utc(r.LeaseUntil),
		LastSeenAt: utc(r.LastSeenAt), LastError: r.LastError,
	}
}

func deletion(d *center.Deletion) api.Deletion {
	return api.Deletion{
		ID: d.ID, DryRun: d.DryRun, HeldBy: list(d.HeldBy), FreesBytes: d.FreesBytes, RetainBytes: d.RetainBytes,
		Running: list(d.Running), Replicas: d.Replicas, JobID: d.JobID,
	}
}

func sandbox(s *spore.Sandbox) api.Sandbox {
	return api.Sandbox{
		ID: s.ID, State: s.State, StateReason: s.StateReason, TemplateID: s.TemplateID, NodeID: s.NodeID, Generation: s.Generation,
		VCPUs: s.Resources.VCPUs, MemoryMiB: s.Resources.MemoryMiB, DiskMiB: s.Resources.DiskMiB,
		Labels: dict(s.Labels), Env: dict(s.Env), Cold: s.Cold,
		Network: network(s.Network), Ports: ports(s.Ports), Limits: limits(s.Limits), Disks: disks(s.Disks),
		CreatedAt: s.CreatedAt.UTC(), UpdatedAt: s.UpdatedAt.UTC(), EndsAt: utc(s.EndsAt), OnEnd: cmp.Or(s.OnEnd, spore.EndKill),
	}
}

// utc keeps the zero time, which is left out on the wire.
func utc(t time.Time) time.Time {
	if t.IsZero() {
		return time.Time{}
	}
	return t.UTC()
}

func job(j *spore.Job) api.Job {
	out := api.Job{
		ID: j.ID, Operation: j.Operation, ResourceType: j.ResourceType, ResourceID: j.ResourceID, SandboxID: j.SandboxID,
		Status: j.Status, Phase: j.Phase, Progress: min(max(j.Progress, 0), 100), Attempt: j.AttemptNo, RetryOfJobID: j.RetryOfJobID,
		Request: j.Request, Result: j.Result, CancelRequested: j.CancelAsked,
		Owner: j.Owner, RequestID: j.RequestID, NodeID: j.NodeID, ArtifactID: j.ArtifactID,
		CreatedAt: j.CreatedAt.UTC(), StartedAt: utc(j.StartedAt), FinishedAt: utc(j.FinishedAt),
	}
	if j.Pull != (spore.PullProgress{}) {
		out.Pull = &api.PullProgress{
			BytesTotal: j.Pull.BytesTotal, BytesDone: j.Pull.BytesDone, LayersTotal: j.Pull.LayersTotal, LayersDone: j.Pull.LayersDone,
			BytesPerSecond: j.Pull.BytesPerSecond,
		}
	}
	if e := j.Error; e != nil {
		out.Error = wireError(&spore.Error{Code: e.Code, Message: e.Message, Field: e.Field, Hint: e.Hint, Reason: e.Reason})
	}
	if j.Redo.Mode != "" {
		out.Redo = &api.RedoPlan{Mode: j.Redo.Mode, Scope: list(j.Redo.Scope), ResumePhase: j.Redo.ResumePhase}
	}
	if j.Nodes != (spore.NodeCounts{}) {
		out.Nodes = &api.NodeCounts{Expected: j.Nodes.Expected, Ready: j.Nodes.Ready, Failed: j.Nodes.Failed}
	}
	return out
}

func logLine(l spore.LogLine) api.LogLine {
	return api.LogLine{Seq: l.Seq, Time: l.Time.UTC(), Level: l.Level, Message: l.Message}
}

func kernel(k *center.Kernel) api.Kernel {
	return api.Kernel{
		ID: k.ID, KernelVersion: k.KernelVersion, AgentVersion: k.AgentVersion, Bytes: k.Bytes, Default: k.Default, InUseBy: k.InUseBy,
		CreatedAt: k.CreatedAt.UTC(),
	}
}

func checkReport(r *spore.CheckReport) api.CheckReport {
	out := api.CheckReport{Full: r.Full, Objects: r.Objects, Bytes: r.Bytes, Problems: make([]api.CheckProblem, 0, len(r.Problems))}
	for _, p := range r.Problems {
		out.Problems = append(out.Problems, api.CheckProblem{Object: p.Object, Kind: p.Kind, Detail: p.Detail, Hint: p.Hint})
	}
	return out
}

func garbageReport(c *center.Collection) api.GarbageReport {
	g := c.Garbage
	out := api.GarbageReport{
		DryRun: g.DryRun, Bytes: g.Bytes, Items: make([]api.GarbageItem, 0, len(g.Items)), Policies: make([]api.PolicyRemoval, 0, len(c.Policies)),
	}
	for _, i := range g.Items {
		out.Items = append(out.Items, api.GarbageItem{ID: i.ID, Kind: i.Kind, Bytes: i.Bytes, Reason: i.Reason})
	}
	for _, p := range c.Policies {
		out.Policies = append(out.Policies, api.PolicyRemoval{TemplateID: p.TemplateID, Name: p.Name, Kind: p.Kind, Policy: p.Policy, Detail: p.Detail})
	}
	return out
}

func explanation(e *center.Explanation) api.Explanation {
	return api.Explanation{
		ID: e.ID, Kind: e.Kind, State: e.State, StandsOn: list(e.StandsOn), HeldBy: list(e.HeldBy), ExclusiveBytes: e.ExclusiveBytes,
		SharedBytes: e.SharedBytes, ReclaimableBytes: e.ReclaimableBytes, Notes: list(e.Notes),
	}
}

func info(i *center.Info) api.Info {
	return api.Info{
		Version: i.Version, NodeID: i.NodeID, DataDir: i.DataDir, Engine: i.Engine, EngineVersion: i.EngineVersion, Accel: i.Accel,
		AccelReason: i.AccelReason, Running: i.Running, MemoryMiB: i.MemoryMiB, MemoryInUseMiB: i.MemoryInUse,
		DiskFreeBytes: i.DiskFreeBytes, PoolReady: i.PoolReady,
	}
}
