// Package nodetest is the conformance suite of center.Node: what the center may rely on, whatever the machine is.
package nodetest

import (
	"context"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/center"
)

// Machine is a node under test and what the suite can do to it behind its back. A lever that is nil leaves out what needs it.
type Machine struct {
	Node  center.Node        // has a kernel bundle, and nothing else; has not recovered
	Image spore.ArtifactSpec // that it can build
	Size  spore.Resources    // of the VMs that the suite makes

	// Peer is a node that Node can fetch from. Without one, Node must refuse to fetch.
	Peer center.Node
	// Restart ends the node's process without warning and begins another on the same disk, while VMs go on.
	Restart func(t *testing.T) center.Node
	// EndVM makes the guest of a VM power off.
	EndVM func(t *testing.T, sandboxID string, generation int)
	// Write makes a guest change what it holds, in memory or on disk.
	Write func(t *testing.T, sandboxID string, generation int)
	// Fill makes the disk so full that the node is in mode delete_only, or as empty as it was.
	Fill func(t *testing.T, full bool)
	// DamageFrozen changes bytes of a frozen state, DamageArtifact of an artifact.
	DamageFrozen, DamageArtifact func(t *testing.T, id string)
	// Midway runs do, once, in the middle of the next call: "start", "probe" or "freeze".
	Midway func(call string, do func())
}

// Run runs the suite. open makes a machine for one test, which ends with it.
func Run(t *testing.T, open func(t *testing.T) Machine) {
	for _, group := range []struct {
		name string
		run  func(t *testing.T, fresh func(t *testing.T) *bed)
	}{
		{"Artifact", testArtifact}, {"Bake", testBake}, {"Frozen", testFrozen}, {"Sandbox", testSandbox}, {"Capture", testCapture},
		{"Recover", testRecover}, {"Ports", testPorts}, {"Space", testSpace}, {"Upkeep", testUpkeep}, {"Cancel", testCancel}, {"Unknown", testUnknown}, {"Fetch", testFetch},
	} {
		t.Run(group.name, func(t *testing.T) {
			group.run(t, func(t *testing.T) *bed {
				t.Helper()
				b := &bed{T: t, Machine: open(t)}
				failed, err := b.Node.Recover(t.Context(), nil)
				if err != nil || len(failed) > 0 {
					t.Fatalf("Recover of a new node: %v, %v", failed, err)
				}
				return b
			})
		})
	}
}

// bed is a machine in one test.
type bed struct {
	*testing.T
	Machine
	built *spore.Artifact
}

func (b *bed) must(err error) {
	b.Helper()
	if err != nil {
		b.Fatal(err)
	}
}

// want wants an error of a code; "" wants none.
func (b *bed) want(err error, code spore.Code) {
	b.Helper()
	if got := spore.CodeOf(err); got != code {
		b.Fatalf("the error is %q (%v), want %q", got, err, code)
	}
}

// needs leaves the test out when a lever is missing.
func (b *bed) needs(there bool, lever string) {
	b.Helper()
	if !there {
		b.Skipf("this machine has no lever %s", lever)
	}
}

func ignore(string) {}

func quiet(spore.JobPhase, spore.PullProgress) {}

// artifact builds the image, once in a test.
func (b *bed) artifact() *spore.Artifact {
	b.Helper()
	if b.built == nil {
		a, err := b.Node.BuildArtifact(b.Context(), b.Image, quiet)
		b.must(err)
		b.built = a
	}
	return b.built
}

// template is one that is not baked yet.
func (b *bed) template() *spore.Template {
	b.Helper()
	kernel, err := b.Node.ResolveKernel(b.Context(), "")
	b.must(err)
	a := b.artifact()
	return &spore.Template{
		ID: spore.NewTemplateID(), Kind: spore.KindTemplate, Image: a.Image, ArtifactID: a.ID, KernelID: kernel, Resources: b.Size, Process: a.Process,
	}
}

// baked is a template that sandboxes can start from.
func (b *bed) baked() *spore.Template {
	b.Helper()
	t := b.template()
	_, err := b.Node.Bake(b.Context(), t, t.ID, ignore)
	b.must(err)
	return t
}

// sandbox is one that is not started yet, at generation 1.
func (b *bed) sandbox() *spore.Sandbox {
	return &spore.Sandbox{ID: spore.NewSandboxID(), Generation: 1, Resources: b.Size, NodeID: b.Node.ID()}
}

// started is a sandbox that runs.
func (b *bed) started(frozenID string) *spore.Sandbox {
	b.Helper()
	s := b.sandbox()
	s.TemplateID = frozenID
	b.must(b.Node.Start(b.Context(), s, frozenID))
	return s
}

// at is a sandbox at another generation.
func at(s *spore.Sandbox, generation int) *spore.Sandbox {
	c := *s
	c.Generation = generation
	return &c
}

func (b *bed) report() *spore.NodeReport {
	b.Helper()
	r, err := b.Node.Report(b.Context())
	b.must(err)
	return r
}

// machines wants exactly these VMs of sandboxes on the node.
func (b *bed) machines(want ...spore.Machine) {
	b.Helper()
	order := func(x, y spore.Machine) int {
		return 2*strings.Compare(x.SandboxID, y.SandboxID) + max(-1, min(1, x.Generation-y.Generation))
	}
	got := slices.SortedFunc(slices.Values(b.report().Machines), order)
	slices.SortFunc(want, order)
	if len(got)+len(want) > 0 && !cmp.Equal(got, want) {
		b.Fatalf("VMs on the node (- want, + got):\n%s", cmp.Diff(want, got))
	}
}

func running(s *spore.Sandbox, frozenID string) spore.Machine {
	return spore.Machine{SandboxID: s.ID, Generation: s.Generation, FrozenID: frozenID, Running: true}
}

// idle wants that nothing is left of what an operation took for itself.
func (b *bed) idle() {
	b.Helper()
	r := b.report()
	vms := 0
	for _, m := range r.Machines {
		if m.Running {
			vms++
		}
	}
	if r.Node.Sandboxes != vms || r.Node.MemoryPromisedMiB != vms*b.Size.MemoryMiB || r.Node.Storage.ReservedBytes != 0 {
		b.Fatalf("%d VMs run, and the node says %d sandboxes, %d MiB promised, %d bytes reserved",
			vms, r.Node.Sandboxes, r.Node.MemoryPromisedMiB, r.Node.Storage.ReservedBytes)
	}
}

// answers wants that the agent of a sandbox answers.
func (b *bed) answers(s *spore.Sandbox) {
	b.Helper()
	transport, err := b.Node.Agent(b.Context(), s.ID, s.Generation)
	b.must(err)
	r, err := http.NewRequestWithContext(b.Context(), http.MethodGet, "http://agent/health", nil)
	b.must(err)
	answer, err := transport.RoundTrip(r)
	b.must(err)
	b.must(answer.Body.Close())
	if answer.StatusCode != http.StatusNoContent {
		b.Fatalf("the agent of %s answers %s", s.ID, answer.Status)
	}
}

// ids wants exactly these frozen states on the node.
func (b *bed) ids(want ...string) {
	b.Helper()
	got, err := b.Node.FrozenIDs(b.Context())
	b.must(err)
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		b.Fatalf("frozen states are %v, want %v", got, want)
	}
}

// garbage lists what a collection would free, but for cached layers.
func (b *bed) garbage() []spore.GarbageItem {
	b.Helper()
	items, err := b.Node.Collect(b.Context(), true)
	b.must(err)
	return slices.DeleteFunc(items, func(i spore.GarbageItem) bool { return i.Kind == "layer" })
}

func (b *bed) collect() {
	b.Helper()
	_, err := b.Node.Collect(b.Context(), false)
	b.must(err)
}

// cancelled is a context that has ended.
func (b *bed) cancelled() context.Context {
	ctx, cancel := context.WithCancel(b.Context())
	cancel()
	return ctx
}
