// Package storetest is the conformance suite of the store: every implementation of store.Store passes it.
package storetest

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/store"
)

// Open opens the database that belongs to dir, an empty directory of the test's own, and makes it at the first call. The suite
// opens one dir twice to see what outlives a store. The store waits after failed attempts as Backoff says. The suite closes it.
type Open func(t *testing.T, dir string) store.Store

// Backoff is how long stores under test wait after a failed attempt.
func Backoff(attempt int) time.Duration { return time.Duration(attempt) * 20 * time.Millisecond }

// Run runs the whole suite.
func Run(t *testing.T, open Open) {
	groups := []struct {
		name string
		run  func(t *testing.T, open Open)
	}{
		{"Transactions", testTransactions},
		{"Changes", testChanges},
		{"Templates", testTemplates},
		{"Sandboxes", testSandboxes},
		{"Jobs", testJobs},
		{"JobLog", testJobLog},
		{"Aliases", testAliases},
		{"Labels", testLabels},
		{"Refs", testRefs},
		{"Replicas", testReplicas},
		{"Artifacts", testArtifacts},
		{"Placements", testPlacements},
		{"Nodes", testNodes},
		{"Controllers", testControllers},
		{"Leases", testLeases},
		{"Replays", testReplays},
		{"Paging", testPaging},
		{"Pages", testPages},
		{"Transitions", testTransitions},
		{"Models", testModels},
		{"Queue", testQueue},
		{"QueueCancel", testQueueCancel},
		{"QueueRetry", testQueueRetry},
		{"QueueRecovery", testQueueRecovery},
	}
	for _, g := range groups {
		t.Run(g.name, func(t *testing.T) { g.run(t, open) })
	}
}

// fresh opens a store on an empty database and closes it when the test ends.
func fresh(t *testing.T, open Open) store.Store {
	return reopen(t, open, t.TempDir())
}

func reopen(t *testing.T, open Open, dir string) store.Store {
	t.Helper()
	s := open(t, dir)
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return s
}

func update(t *testing.T, s store.Store, fn func(tx store.Tx) error) {
	t.Helper()
	if err := s.Update(t.Context(), fn); err != nil {
		t.Fatal(err)
	}
}

func view(t *testing.T, s store.Store, fn func(tx store.Tx) error) {
	t.Helper()
	if err := s.View(t.Context(), fn); err != nil {
		t.Fatal(err)
	}
}

// wantCode fails the test unless err has the code; "" means no error.
func wantCode(t *testing.T, err error, code spore.Code) {
	t.Helper()
	if got := spore.CodeOf(err); got != code {
		t.Fatalf("code %q, want %q; error: %v", got, code, err)
	}
}

// wantReason is wantCode for an error that says what exactly it is.
func wantReason(t *testing.T, err error, code spore.Code, reason spore.Reason) {
	t.Helper()
	wantCode(t, err, code)
	if got := spore.AsError(err).Reason; got != reason {
		t.Fatalf("reason %q, want %q; error: %v", got, reason, err)
	}
}

func wantEqual(t *testing.T, got, want any) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Fatalf("differs (-want +got):\n%s", diff)
	}
}

// within is how long anything may take before the suite gives it up.
const within = 20 * time.Second

func receive[T any](t *testing.T, ch <-chan T, what string) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(within):
		t.Fatalf("%s: nothing came within %s", what, within)
		panic("unreachable")
	}
}

// epoch is the time that samples are made at. Nanoseconds must survive.
var epoch = time.Date(2026, 3, 4, 5, 6, 7, 89, time.UTC)

func at(n int) time.Time { return epoch.Add(time.Duration(n) * time.Second) }

func sampleTemplate(n int) *spore.Template {
	return &spore.Template{
		ID: fmt.Sprintf("tpl-%024x", n), Name: fmt.Sprintf("name-%d", n), Kind: spore.KindTemplate, Status: spore.TemplatePending,
		Image:      spore.Image{Reference: "example.org/a:b", Digest: "sha256:00ff", Platform: "linux/amd64"},
		ArtifactID: "rfs-1", KernelID: "krn-1",
		EgressCA:  spore.EgressCA{Baked: true, Fingerprint: "aa", TargetsWritten: 3},
		Resources: spore.Resources{VCPUs: 2, MemoryMiB: 256, DiskMiB: 1024},
		Process: spore.Process{
			Entrypoint: []string{"/bin/sh", "-c"}, Cmd: []string{"echo 'ä\x00\"'"}, Env: []string{"A=B", "C="},
			User: "me:us", WorkDir: "/w", StopSignal: "SIGTERM",
		},
		Readiness: spore.Readiness{Command: []string{"true"}, TCPPort: 1, HTTPPath: "/x", HTTPPort: 2, Timeout: 1500 * time.Millisecond}, NIC: true,
		Version: "v2", Engine: "qemu", StorageBackend: "layers", DisplayName: "Näme for people", Retain: true, Policy: spore.PolicyGuestOnly,
		Replicas: spore.ReplicaPolicy{
			Nodes: []string{"n1", "n2"}, Selector: map[string]string{"zone": "a"}, Min: 1, Max: 3, Pinned: true,
		},
		RootfsSizeBytes: 1 << 33, Request: []byte(`{"ttlSeconds":60}`), Author: "me", Reason: "because",
		ParentID: "tpl-0", OriginSandbox: "s0", OriginNode: "n0",
		Labels:      map[string]string{"team": "a", "odd.key $[0]\"'": "odd %_ value"},
		MemoryBytes: 1 << 40, DiskBytes: 7, LastError: "none", JobID: "job-0", CreatedAt: at(n), UpdatedAt: at(n + 1),
	}
}

func sampleSandbox(n int, templateID string) *spore.Sandbox {
	return &spore.Sandbox{
		ID: fmt.Sprintf("s%020x", n), State: spore.SandboxCreating, StateReason: "why", TemplateID: templateID, NodeID: "n1", Generation: 3,
		Resources: spore.Resources{VCPUs: 1, MemoryMiB: 128, DiskMiB: 64}, Labels: map[string]string{"a": "b"},
		Env: map[string]string{"K": "V"}, Cold: true,
		Network: spore.Network{Mode: spore.NetworkUser, Egress: spore.Egress{
			Internet: new(bool), AllowCIDRs: []string{"203.0.113.0/24"}, DenyCIDRs: []string{"203.0.113.7"}, AllowDomains: []string{"example.org"},
			Proxy: "http://10.1.2.3:3128",
		}},
		Ports:  []spore.PortForward{{HostAddress: "127.0.0.1", HostPort: 8080, GuestPort: 80}, {GuestPort: 81}},
		Limits: spore.Limits{CPUs: 0.5, DiskMBps: 10, DiskIOPS: 20, NetworkInMbps: 30, NetworkOutMbps: 40},
		Disks:  []spore.Disk{{Path: "/d/a", ReadOnly: true}, {Path: "/d/b"}},
		Origin: "job-1", FrozenID: "f", CreatedAt: at(n), UpdatedAt: at(n), EndsAt: at(n + 60), OnEnd: spore.EndPause,
	}
}

func sampleJob(n int) *spore.Job {
	return &spore.Job{
		ID: fmt.Sprintf("job-%024x", n), Operation: spore.OpCreate, ResourceType: spore.KindTemplate, ResourceID: fmt.Sprintf("tpl-%d", n),
		SandboxID: "s1", Status: spore.JobPending, RequestID: "key", NodeID: "n1", ArtifactID: "rfs-1", Owner: "c1",
		Redo:  spore.RedoPlan{Mode: spore.RedoNodes, Scope: []string{"n1", "n2"}, ResumePhase: spore.PhaseDistributing},
		Nodes: spore.NodeCounts{Expected: 3, Ready: 1, Failed: 2}, Phase: spore.PhasePulling, Progress: 12,
		Pull:      spore.PullProgress{BytesTotal: 9, BytesDone: 8, LayersTotal: 7, LayersDone: 6, BytesPerSecond: 5},
		AttemptNo: 2, RetryOfJobID: "job-x", Error: &spore.JobError{Code: spore.CodeBusy, Message: "m", Field: "f", Hint: "h", Reason: spore.ReasonInUse},
		Request: []byte(`{"a":1}`), Result: []byte(`{"b":2}`), CancelAsked: true, CreatedAt: at(n), StartedAt: at(n + 1), FinishedAt: at(n + 2),
	}
}

func sampleComponents() spore.Components {
	return spore.Components{GuestImage: "krn-1", Agent: "a1", Kernel: "6.1", Engine: "7.2", StateFormat: "pc-7.2", CPU: "avx2 aes", EngineVersion: "7.2.22"}
}

func sampleReplica(templateID, nodeID string) *spore.Replica {
	return &spore.Replica{
		TemplateID: templateID, NodeID: nodeID, Status: spore.ReplicaFailed, Phase: spore.ReplicaPending, ArtifactID: "rfs-1", LastJobID: "job-1",
		LastErrorPhase: spore.ReplicaDistributing, ErrorMessage: "e", CleanupRequired: true, Attempts: 3, RetryAt: at(5),
		Bound: sampleComponents(), CompatStatus: spore.CompatStale, CompatPolicy: spore.PolicyStrict, CompatCheckedAt: at(4),
		VerifiedAt: at(3), UpdatedAt: at(1),
	}
}

func sampleArtifact(n int) *spore.Artifact {
	return &spore.Artifact{
		ID: fmt.Sprintf("rfs-%024x", n), Status: spore.ArtifactPending,
		Image:    spore.Image{Reference: "example.org/a:b", Digest: "sha256:00ff", Platform: "linux/amd64"},
		Process:  spore.Process{Entrypoint: []string{"/init"}, Cmd: []string{"x"}, Env: []string{"A=B"}, User: "u", WorkDir: "/", StopSignal: "SIGINT"},
		EgressCA: spore.EgressCA{Baked: true, Fingerprint: "aa", TargetsWritten: 3},
		Digest:   "sha256:ff", SizeBytes: 1 << 34, BuildJobID: "job-1", LastError: "e", UnusedAt: at(n + 2), TriedAt: at(n + 3),
		CreatedAt: at(n), UpdatedAt: at(n + 1),
	}
}

func sampleNode(n int) *spore.Node {
	return &spore.Node{
		ID: fmt.Sprintf("Node-%02d.example.org", n), Address: "10.0.0.1:7", State: spore.NodeReady, StateReason: "why", Draining: true,
		Labels: map[string]string{"zone": "a"}, Engine: "qemu", Components: sampleComponents(),
		Installed: []spore.Components{{GuestImage: "krn-0", Agent: "a0", Kernel: "6.0"}, {GuestImage: "krn-2"}},
		Networks:  []spore.NodeNetwork{{Mode: spore.NetworkNone}, {Mode: spore.NetworkIsolated, WhyNot: "no root"}},
		VCPUs:     8, MemoryMiB: 1 << 14, MemoryPromisedMiB: 512, Sandboxes: 3,
		Storage: spore.NodeStorage{
			TotalBytes: 1 << 40, UsedBytes: 1 << 39, ReservedBytes: 7, Mode: spore.StorageWarn, Limits: spore.DefaultStorageLimits,
			LastError: "e", MeasuredAt: at(2),
		},
		CreatedAt: at(n), UpdatedAt: at(n + 1), SeenAt: at(n + 2),
	}
}

// withTemplate inserts a template for other rows to refer to, and answers its id.
func withTemplate(t *testing.T, s store.Store) string {
	t.Helper()
	row := sampleTemplate(1 << 20)
	update(t, s, func(tx store.Tx) error { return tx.InsertTemplate(row) })
	return row.ID
}
