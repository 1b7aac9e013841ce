package node

import (
	"context"
	"io"
	"net/http"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/guest"
	"github.com/sporevm/spore/internal/image"
)

// BuildArtifact turns an image into a root filesystem. The artifact counts as in use until Bake has ended for a template
// that stands on it (or, if that never comes, until the server does).
func (n *Node) BuildArtifact(ctx context.Context, spec spore.ArtifactSpec, progress func(spore.JobPhase, spore.PullProgress)) (*spore.Artifact, error) {
	if len(spec.EgressCA) == 0 {
		spec.EgressCA = nil // the builder takes an empty one for a mistake
	}
	r, err := n.buildHeld(ctx, spec.Reference, image.BuildOptions{
		ResolveOptions: image.ResolveOptions{Insecure: spec.Insecure},
		EgressCA:       spec.EgressCA,
		Progress: func(p image.Progress) {
			progress(spore.JobPhase(p.Phase), spore.PullProgress{
				BytesTotal: p.BytesTotal, BytesDone: p.BytesDone, LayersTotal: p.LayersTotal, LayersDone: p.LayersDone,
			})
		},
	})
	if err != nil {
		return nil, err
	}
	a := r.Artifact
	out := &spore.Artifact{
		ID: a.ID, Image: spore.Image{Reference: spec.Reference, Digest: r.Image.ManifestDigest, Platform: r.Image.Platform},
		Process: spore.Process{
			Entrypoint: r.Config.Entrypoint, Cmd: r.Config.Cmd, Env: r.Config.Env, User: r.Config.User,
			WorkDir: r.Config.WorkingDir, StopSignal: r.Config.StopSignal,
		},
		Digest: a.Digest, SizeBytes: a.SizeBytes, Reused: r.Reused,
	}
	if ca := a.EgressCA; ca != nil {
		out.EgressCA = spore.EgressCA{Baked: true, Fingerprint: ca.Fingerprint, TargetsWritten: len(ca.Targets)}
	}
	return out, nil
}

// buildHeld builds an artifact and holds it. One that a collection took away in between is built again.
func (n *Node) buildHeld(ctx context.Context, ref string, opt image.BuildOptions) (*image.Result, error) {
	for tries := 3; ; tries-- {
		r, err := n.opt.Images.Build(ctx, ref, opt)
		if err != nil {
			return nil, err
		}
		n.holds.hold(r.Artifact.ID)
		_, err = n.opt.Images.Get(r.Artifact.ID)
		if err == nil {
			return r, nil
		}
		n.holds.drop(r.Artifact.ID)
		if !isNotFound(err) || tries == 0 {
			return nil, err
		}
	}
}

// Agent answers a transport to the agent of a running sandbox.
func (n *Node) Agent(ctx context.Context, sandboxID string, generation int) (http.RoundTripper, error) {
	m, err := n.machine(sandboxID, generation)
	if err != nil {
		return nil, err
	}
	a, err := m.reach(ctx)
	if err != nil {
		return nil, err
	}
	return a.Transport(), nil
}

// Logs answers the output of the image's own process, or of the guest's console.
func (n *Node) Logs(ctx context.Context, sandboxID string, generation int, console bool, limit int) ([]byte, error) {
	m, err := n.machine(sandboxID, generation)
	if err != nil {
		return nil, err
	}
	if console {
		return m.vm.Console(limit)
	}
	ctx, cancel := context.WithTimeout(ctx, greetTimeout)
	defer cancel()
	a, err := m.reach(ctx)
	if err != nil {
		return nil, err
	}
	return readLogs(ctx, a, limit)
}

// reach is connect for a sandbox that was greeted long ago: its guest answers soon or not at all.
func (m *machine) reach(ctx context.Context) (*guest.Agent, error) {
	ctx, cancel := context.WithTimeout(ctx, greetTimeout)
	defer cancel()
	a, err := m.connect(ctx)
	if err != nil {
		return nil, m.unreached(err, "the agent of the sandbox does not answer")
	}
	return a, nil
}

// readLogs reads what is kept of the output of the image's process, at most limit bytes whatever the guest sends.
func readLogs(ctx context.Context, a *guest.Agent, limit int) ([]byte, error) {
	body, err := a.Logs(ctx, limit, false)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	return io.ReadAll(io.LimitReader(body, int64(limit)))
}
