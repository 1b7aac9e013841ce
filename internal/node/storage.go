package node

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/frozen"
	"github.com/sporevm/spore/internal/vmm"
)

// shapes answers the shape of every frozen state and of every running VM, by frozen id or "vm "+vmid. It fails when one
// cannot be read: what cannot be read may stand on anything.
func (n *Node) shapes(ctx context.Context) (map[string]frozen.Shape, error) {
	entries, err := n.opt.Frozen.List(ctx)
	if err != nil {
		return nil, err
	}
	shapes := map[string]frozen.Shape{}
	for _, e := range entries {
		if e.Err != nil {
			return nil, spore.Errorf(spore.CodeDamaged, "the frozen state %s cannot be read, so nothing can be said to be unused", e.ID).
				WithCause(e.Err).WithHint("remove it, or restore its files; spore fsck says what is wrong")
		}
		shapes[e.ID] = e.Manifest.Shape
	}
	pins, err := n.opt.Frozen.Pins()
	if err != nil {
		return nil, err
	}
	for _, pin := range pins {
		m, err := n.opt.Frozen.Pinned(pin)
		if isNotFound(err) {
			continue // its VM has just ended
		}
		if err != nil {
			return nil, err
		}
		shapes["vm "+pin] = m.Shape
	}
	return shapes, nil
}

// Check looks for damage in what the node stores; full reads every byte.
func (n *Node) Check(ctx context.Context, full bool, progress func(step string, done, total int64)) (*spore.CheckReport, error) {
	if progress == nil {
		progress = func(string, int64, int64) {}
	}
	var found *frozen.Report
	var err error
	progress("frozen states", 0, 0)
	if full {
		found, err = n.opt.Frozen.Scrub(ctx, func(done, total int64) { progress("frozen states", done, total) })
	} else {
		found, err = n.opt.Frozen.Check(ctx, false)
	}
	if err != nil {
		return nil, err
	}
	report := &spore.CheckReport{Full: full, Objects: found.Manifests + found.Pieces, Bytes: found.BytesRead, Problems: []spore.CheckProblem{}}
	for _, p := range found.Problems {
		if p.Kind == frozen.ProblemUnreferenced {
			continue // no damage: a collection frees it
		}
		object := p.Piece
		if object == "" && len(p.Manifests) > 0 {
			object = p.Manifests[0]
		}
		detail := p.Message
		if len(p.Manifests) > 0 {
			detail += " (needed by " + strings.Join(p.Manifests, ", ") + ")"
		}
		report.Problems = append(report.Problems, spore.CheckProblem{Object: object, Kind: p.Kind, Detail: detail, Hint: p.Hint})
	}
	if err := n.checkArtifacts(ctx, full, report, progress); err != nil {
		return nil, err
	}
	return report, n.checkKernels(ctx, report, progress)
}

func (n *Node) checkArtifacts(ctx context.Context, full bool, report *spore.CheckReport, progress func(string, int64, int64)) error {
	list, err := n.opt.Images.List()
	if err != nil {
		return err
	}
	for i, a := range list {
		progress("artifacts", int64(i), int64(len(list)))
		verify := n.opt.Images.VerifyQuick
		if full {
			verify = n.opt.Images.Verify
			report.Bytes += a.SizeBytes
		}
		report.Objects++
		if err := verify(ctx, a.ID); err != nil && !isNotFound(err) { // removed since it was listed
			if ctx.Err() != nil {
				return ctx.Err()
			}
			report.Problems = append(report.Problems, spore.CheckProblem{
				Object: a.ID, Kind: "damaged", Detail: spore.AsError(err).Error(), Hint: "build the template again from its image",
			})
		}
	}
	return nil
}

func (n *Node) checkKernels(ctx context.Context, report *spore.CheckReport, progress func(string, int64, int64)) error {
	bundles, err := n.opt.Kernels.List()
	if err != nil {
		return err
	}
	for i, b := range bundles {
		progress("kernels", int64(i), int64(len(bundles)))
		report.Objects++
		report.Bytes += b.Size()
		if err := n.opt.Kernels.Verify(ctx, b.ID); err != nil && !isNotFound(err) {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			report.Problems = append(report.Problems, spore.CheckProblem{
				Object: b.ID, Kind: "damaged", Detail: spore.AsError(err).Error(), Hint: "install the same kernel again: spore kernel install",
			})
		}
	}
	return nil
}

// Collect frees what nothing holds: pieces of frozen states, artifacts that no frozen state stands on, image layers that
// no artifact needs again.
func (n *Node) Collect(ctx context.Context, dryRun bool) ([]spore.GarbageItem, error) {
	items := []spore.GarbageItem{}
	plan, err := n.opt.Frozen.PlanSweep(ctx, nil)
	if err != nil {
		return nil, err
	}
	if len(plan.Blocked) > 0 {
		return nil, spore.Errorf(spore.CodeDamaged, "%s cannot be read, so nothing can be said to be unused", strings.Join(plan.Blocked, ", ")).
			WithHint("remove them, or restore their files; spore fsck says what is wrong")
	}
	for _, p := range plan.Remove {
		items = append(items, spore.GarbageItem{ID: p.Piece, Kind: string(p.Kind), Bytes: p.Bytes, Reason: p.Reason})
	}
	artifacts, err := n.unusedArtifacts(ctx)
	if err != nil {
		return nil, err
	}
	items = append(items, artifacts...)
	layers := []spore.GarbageItem{}
	_, err = n.opt.Images.SweepBlobs(func(digest string) bool { layers = append(layers, n.layer(digest)); return true })
	if err != nil {
		return nil, err
	}
	items = append(items, layers...)
	if dryRun {
		return items, nil
	}
	if _, err := plan.Execute(ctx); err != nil {
		return nil, err
	}
	for _, a := range artifacts {
		if err := n.removeArtifact(ctx, a.ID); err != nil && !isNotFound(err) {
			return nil, err
		}
	}
	_, err = n.opt.Images.SweepBlobs(func(string) bool { return false })
	return items, err
}

// removeArtifact removes an artifact if it is still true, while nothing can come to need it, that nothing does.
func (n *Node) removeArtifact(ctx context.Context, id string) error {
	return n.holds.unlessWanted(id, func() error {
		shapes, err := n.shapes(ctx)
		if err != nil {
			return err
		}
		for _, s := range shapes {
			if s.Artifact == id {
				return nil
			}
		}
		return n.opt.Images.Remove(ctx, id)
	})
}

// layer describes a cached image layer.
func (n *Node) layer(digest string) spore.GarbageItem {
	item := spore.GarbageItem{ID: digest, Kind: "layer", Reason: "cached; a build that needs it downloads it again"}
	if st, err := os.Stat(n.path("blobs", "sha256", strings.TrimPrefix(digest, "sha256:"))); err == nil {
		item.Bytes = st.Size()
	}
	return item
}

func (n *Node) unusedArtifacts(ctx context.Context) ([]spore.GarbageItem, error) {
	shapes, err := n.shapes(ctx)
	if err != nil {
		return nil, err
	}
	used := map[string]bool{}
	for _, s := range shapes {
		used[s.Artifact] = true
	}
	list, err := n.opt.Images.List()
	if err != nil {
		return nil, err
	}
	var items []spore.GarbageItem
	for _, a := range list {
		if !used[a.ID] && !n.holds.wanted(a.ID) {
			items = append(items, spore.GarbageItem{ID: a.ID, Kind: "artifact", Bytes: a.AllocatedBytes, Reason: "no frozen state stands on it"})
		}
	}
	return items, nil
}

// Usage answers what a frozen state keeps on disk and who holds parts of it.
func (n *Node) Usage(ctx context.Context, frozenID string) (*spore.Usage, error) {
	e, err := n.opt.Frozen.Explain(ctx, frozenID, nil)
	if err != nil {
		return nil, err
	}
	u := &spore.Usage{ExclusiveBytes: e.Exclusive, SharedBytes: e.Shared, ReclaimableBytes: e.Reclaimable}
	if m, err := n.opt.Frozen.Manifest(frozenID); err == nil {
		u.StandsOn = []string{m.Shape.Artifact, m.Shape.Kernel}
	}
	for _, p := range e.Pieces {
		for _, h := range p.Holders {
			name := h.ID
			if h.Why == "pin" {
				name = n.sandboxOf(h.ID)
			}
			if name != frozenID && !slices.Contains(u.HeldBy, name) {
				u.HeldBy = append(u.HeldBy, name)
			}
		}
	}
	slices.Sort(u.HeldBy)
	return u, nil
}

// sandboxOf names the sandbox that a VM is, for people.
func (n *Node) sandboxOf(vmid string) string {
	n.mu.Lock()
	defer n.mu.Unlock()
	if m := n.machines[vmid]; m != nil && m.owner.Sandbox != "" {
		return m.owner.Sandbox
	}
	return fmt.Sprintf("%s (kept ready)", vmid)
}

// Load is how much of the machine is in use. Machines counts the VMs of sandboxes; PromisedMiB is also what templates
// that boot and VMs that are kept ready take.
type Load struct {
	Machines, MemoryMiB, PromisedMiB, PoolReady int
	DiskFreeBytes                               int64
}

// Load answers how much of the machine is in use.
func (n *Node) Load() (Load, error) {
	promised := n.cap.inUse()
	machines := 0
	n.mu.Lock()
	for _, m := range n.machines {
		if m.owner.Sandbox != "" && m.vm.State() != vmm.StateExited {
			machines++
		}
	}
	n.mu.Unlock()
	free, err := freeBytes(n.opt.DataDir)
	return Load{Machines: machines, MemoryMiB: n.cap.totalMiB, PromisedMiB: promised, PoolReady: n.pool.count(), DiskFreeBytes: free}, err
}
