package node

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/frozen"
	"github.com/sporevm/spore/internal/image"
)

// ResolveArtifact says which artifact an image would become right now. Nothing is built.
func (n *Node) ResolveArtifact(ctx context.Context, spec spore.ArtifactSpec) (*spore.Artifact, error) {
	id, err := n.opt.Images.Identify(ctx, spec.Reference, buildOptions(spec))
	if err != nil {
		return nil, err
	}
	return &spore.Artifact{
		ID: id.ArtifactID, Image: imageOf(spec, id.Image), Process: processOf(id.Config),
		EgressCA: spore.EgressCA{Baked: id.CAFingerprint != "", Fingerprint: id.CAFingerprint},
	}, nil
}

// BuildArtifact turns an image into a root filesystem. No collection takes it away until Bake has ended for a template
// that stands on it, or until it is clear that this will not come.
func (n *Node) BuildArtifact(ctx context.Context, spec spore.ArtifactSpec, progress func(spore.JobPhase, spore.PullProgress)) (*spore.Artifact, error) {
	opt := buildOptions(spec)
	opt.Progress = func(p image.Progress) {
		progress(spore.JobPhase(p.Phase), spore.PullProgress{
			BytesTotal: p.BytesTotal, BytesDone: p.BytesDone, LayersTotal: p.LayersTotal, LayersDone: p.LayersDone,
		})
	}
	opt.Reserve = func(bytes int64) (func(), error) {
		return n.guard.reserve("building "+spec.Reference, bytes, toKeep)
	}
	r, err := n.buildFresh(ctx, spec.Reference, opt)
	if err != nil {
		return nil, err
	}
	a := r.Artifact
	out := &spore.Artifact{
		ID: a.ID, Image: imageOf(spec, r.Image), Process: processOf(r.Config),
		Digest: a.Digest, SizeBytes: a.SizeBytes, Reused: r.Reused,
	}
	if ca := a.EgressCA; ca != nil {
		out.EgressCA = spore.EgressCA{Baked: true, Fingerprint: ca.Fingerprint, TargetsWritten: len(ca.Targets)}
	}
	return out, nil
}

func buildOptions(spec spore.ArtifactSpec) image.BuildOptions {
	opt := image.BuildOptions{ResolveOptions: image.ResolveOptions{Insecure: spec.Insecure}}
	if len(spec.EgressCA) > 0 { // the builder takes an empty one for a mistake
		opt.EgressCA = spec.EgressCA
	}
	return opt
}

func imageOf(spec spore.ArtifactSpec, i image.Image) spore.Image {
	return spore.Image{Reference: spec.Reference, Digest: i.ManifestDigest, Platform: i.Platform}
}

func processOf(c image.Config) spore.Process {
	return spore.Process{
		Entrypoint: c.Entrypoint, Cmd: c.Cmd, Env: c.Env, User: c.User, WorkDir: c.WorkingDir, StopSignal: c.StopSignal,
	}
}

// buildFresh builds an artifact and notes that it is fresh. One that a collection took away in between is built again.
func (n *Node) buildFresh(ctx context.Context, ref string, opt image.BuildOptions) (*image.Result, error) {
	for tries := 3; ; tries-- {
		r, err := n.opt.Images.Build(ctx, ref, opt)
		if err != nil {
			return nil, err
		}
		n.holds.built(r.Artifact.ID)
		_, err = n.opt.Images.Get(r.Artifact.ID)
		if err == nil {
			return r, nil
		}
		n.holds.used(r.Artifact.ID)
		if !isNotFound(err) || tries == 0 {
			return nil, err
		}
	}
}

// VerifyArtifact is nil when the artifact is here and what it should be. Without full, one whose file looks untouched
// since it was last read is taken at its word.
func (n *Node) VerifyArtifact(ctx context.Context, id string, full bool) error {
	if full {
		return n.opt.Images.Verify(ctx, id)
	}
	return n.opt.Images.VerifyQuick(ctx, id)
}

// removeTimeout bounds how long a removal waits for a build of the same artifact, during which nothing can start.
const removeTimeout = 5 * time.Second

// DropArtifact removes an artifact that nothing stands on.
func (n *Node) DropArtifact(ctx context.Context, id string) error {
	held, err := n.holds.unlessHeld(id, func() error {
		users, err := n.users(ctx, func(s frozen.Shape) string { return s.Artifact })
		if err != nil {
			return err
		}
		if by := users[id]; len(by) > 0 {
			return spore.Errorf(spore.CodeInUse, "%s stand on artifact %s", n.name(by), id).WithHint("remove those first")
		}
		removing, cancel := context.WithTimeout(ctx, removeTimeout)
		defer cancel()
		err = n.opt.Images.Remove(removing, id)
		if isNotFound(err) {
			return nil
		}
		if removing.Err() != nil && ctx.Err() == nil {
			return spore.Errorf(spore.CodeBusy, "artifact %s is being built", id).WithCause(err).WithHint("try again when that is done")
		}
		return err
	})
	if held {
		return spore.Errorf(spore.CodeInUse, "artifact %s is booting a template or a sandbox right now", id).WithHint("try again when that is done")
	}
	return err
}

// name lists a few of those that stand on something, as people know them.
func (n *Node) name(by []string) string {
	const some = 3
	var names []string
	for _, id := range by[:min(len(by), some)] {
		if vm, ok := strings.CutPrefix(id, "vm "); ok {
			id = n.sandboxOf(vm)
		}
		names = append(names, id)
	}
	list := strings.Join(names, ", ")
	if more := len(by) - len(names); more > 0 {
		list += fmt.Sprintf(" and %d more", more)
	}
	return list
}

// OpenArtifact opens an artifact's filesystem image, which stays readable when the artifact is removed meanwhile.
func (n *Node) OpenArtifact(ctx context.Context, id string) (interface {
	io.ReadSeekCloser
	Size() int64
	Digest() string
}, error) {
	f, err := n.opt.Images.OpenFile(id)
	if err != nil {
		return nil, err // not f: a nil pointer in an interface is not nil
	}
	return f, nil
}
