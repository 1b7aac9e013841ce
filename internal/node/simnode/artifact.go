package simnode

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"io"
	"strings"
	"time"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/center"
)

// platform is that of all simulated machines.
const platform = "linux/amd64"

// freshFor is how long an artifact that was built, and that nothing stands on yet, is kept from being collected.
const freshFor = time.Hour

// artifact is a root filesystem on the machine.
type artifact struct {
	id      string
	bytes   int64
	digest  string
	fresh   []time.Time // when it was built for somebody who has not baked with it yet
	damaged bool
	rotten  bool // damaged, but only reading every byte shows it
}

// ResolveArtifact is center.Node's.
func (h *Handle) ResolveArtifact(ctx context.Context, spec spore.ArtifactSpec) (*spore.Artifact, error) {
	return ask(ctx, h, "resolve", func(c *call) (*spore.Artifact, error) {
		if err := c.step("registry"); err != nil {
			return nil, err
		}
		a, _, err := c.m.cluster.lookup(spec)
		return a, err
	})
}

// lookup says what an image would become. Nothing but SizeBytes of what only a build knows is in the answer.
func (c *Cluster) lookup(spec spore.ArtifactSpec) (*spore.Artifact, Image, error) {
	if spec.Reference == "" || strings.HasPrefix(spec.Reference, "-") {
		return nil, Image{}, spore.Invalidf("image", "%q is not an image reference", spec.Reference)
	}
	image, err := c.resolve(spec.Reference)
	if err != nil {
		return nil, image, err
	}
	a := &spore.Artifact{
		Image:   spore.Image{Reference: spec.Reference, Digest: "sha256:" + hashOf("manifest", spec.Reference, image.Content), Platform: platform},
		Process: image.Process,
	}
	if len(spec.EgressCA) > 0 {
		if a.EgressCA.Fingerprint, err = fingerprint(spec.EgressCA); err != nil {
			return nil, image, err
		}
		a.EgressCA.Baked, a.EgressCA.TargetsWritten = true, 1
	}
	a.ID = spore.ArtifactPrefix + hashOf("artifact", platform, image.Content, a.EgressCA.Fingerprint)[:24]
	return a, image, nil
}

func fingerprint(ca []byte) (string, error) {
	block, rest := pem.Decode(ca)
	if block == nil || len(bytes.TrimSpace(rest)) > 0 {
		return "", spore.Invalidf("egressCA", "it is not one certificate in PEM form")
	}
	if _, err := x509.ParseCertificate(block.Bytes); err != nil {
		return "", spore.Invalidf("egressCA", "it is not a certificate: %w", err)
	}
	sum := sha256.Sum256(block.Bytes)
	return hex.EncodeToString(sum[:]), nil
}

// BuildArtifact is center.Node's.
func (h *Handle) BuildArtifact(ctx context.Context, spec spore.ArtifactSpec, progress func(spore.JobPhase, spore.PullProgress)) (*spore.Artifact, error) {
	return ask(ctx, h, "build", func(c *call) (*spore.Artifact, error) { return c.build(spec, progress) })
}

func (c *call) build(spec spore.ArtifactSpec, progress func(spore.JobPhase, spore.PullProgress)) (*spore.Artifact, error) {
	m := c.m
	tell := func(phase spore.JobPhase, done, total int64) {
		if progress != nil && !c.unheard {
			c.aside(func() {
				progress(phase, spore.PullProgress{BytesTotal: total, BytesDone: done, LayersTotal: 1, LayersDone: int(done / max(total, 1))})
			})
		}
	}
	if err := c.step("resolve"); err != nil {
		return nil, err
	}
	a, image, err := m.cluster.lookup(spec)
	if err != nil {
		return nil, err
	}
	a.SizeBytes, a.Digest = image.SizeBytes, m.cluster.digest(a.ID, image.SizeBytes)
	if there := m.artifacts[a.ID]; there != nil && !there.damaged && !there.rotten {
		there.fresh = append(there.fresh, m.cluster.now())
		a.Reused = true
		return a, nil
	}
	layer := "sha256:" + hashOf("layer", image.Content)
	packed := image.SizeBytes / 2
	if err := c.reserve(forKeeping, image.SizeBytes+packed); err != nil {
		return nil, err
	}
	tell(spore.PhasePulling, 0, packed)
	if err := c.step("pull"); err != nil {
		return nil, err
	}
	if m.blobs[layer] == 0 {
		m.blobs[layer] = packed
		c.grow(packed)
	}
	tell(spore.PhasePulling, packed, packed)
	if err := c.step("unpack"); err != nil {
		return nil, err
	}
	tell(spore.PhaseUnpacking, packed, packed)
	if err := c.step("write"); err != nil {
		return nil, err
	}
	tell(spore.PhaseBuildingExt4, packed, packed)
	if err := c.step("commit"); err != nil {
		return nil, err
	}
	there := m.artifacts[a.ID]
	if there != nil { // another build was first; or it was damaged, and is whole again
		a.Reused = !there.damaged && !there.rotten
		there.damaged, there.rotten = false, false
	} else {
		there = &artifact{id: a.ID, bytes: image.SizeBytes, digest: a.Digest}
		m.artifacts[a.ID] = there
		c.grow(image.SizeBytes)
	}
	there.fresh = append(there.fresh, m.cluster.now())
	return a, nil
}

// awaited says whether an artifact was built for somebody who may yet come to stand on it.
func (m *Machine) awaited(a *artifact) bool {
	return len(a.fresh) > 0 && m.cluster.now().Sub(a.fresh[len(a.fresh)-1]) <= freshFor
}

// VerifyArtifact is center.Node's.
func (h *Handle) VerifyArtifact(ctx context.Context, id string, full bool) error {
	_, err := ask(ctx, h, "verifyArtifact", func(c *call) (any, error) {
		if err := c.step("read"); err != nil {
			return nil, err
		}
		return nil, c.m.verifyArtifact(id, full)
	})
	return err
}

func (m *Machine) verifyArtifact(id string, full bool) error {
	switch a := m.artifacts[id]; {
	case a == nil:
		return artifactMissing(id)
	case a.damaged || full && a.rotten:
		return spore.Errorf(spore.CodeDamaged, "artifact %s is not what was written", id).WithHint("build the template again from its image")
	}
	return nil
}

func artifactMissing(id string) error {
	return spore.Errorf(spore.CodeNotFound, "there is no artifact %s", id)
}

// DropArtifact is center.Node's.
func (h *Handle) DropArtifact(ctx context.Context, id string) error {
	_, err := ask(ctx, h, "dropArtifact", func(c *call) (any, error) {
		if err := c.step("remove"); err != nil {
			return nil, err
		}
		if c.m.artifacts[id] == nil {
			return nil, nil
		}
		if by := c.m.artifactUsers(id); len(by) > 0 {
			return nil, spore.Errorf(spore.CodeInUse, "artifact %s is used by %s", id, strings.Join(by, ", ")).WithHint("remove those first")
		}
		c.m.removeArtifact(id)
		return nil, nil
	})
	return err
}

// artifactUsers names what stands on an artifact, in order: frozen states, VMs, and calls that are about to.
func (m *Machine) artifactUsers(id string) []string {
	var by []string
	for _, name := range sortedKeys(m.manifests) {
		if m.manifests[name].artifact == id {
			by = append(by, name)
		}
	}
	for _, name := range sortedKeys(m.vms) {
		if v := m.vms[name]; v.state.artifact == id {
			by = append(by, v.label())
		}
	}
	return append(by, m.callsOn(func(c *call) bool {
		for _, need := range c.needs {
			if need == id {
				return true
			}
		}
		return false
	})...)
}

func (m *Machine) removeArtifact(id string) {
	if by := m.artifactUsers(id); len(by) > 0 {
		m.violation("artifact %s was removed while %s stood on it", id, strings.Join(by, ", "))
	}
	m.used -= m.artifacts[id].bytes
	delete(m.artifacts, id)
}

// OpenArtifact is center.Node's.
func (h *Handle) OpenArtifact(ctx context.Context, id string) (center.ArtifactFile, error) {
	return ask(ctx, h, "openArtifact", func(c *call) (center.ArtifactFile, error) {
		if err := c.step("open"); err != nil {
			return nil, err
		}
		a := c.m.artifacts[id]
		if a == nil {
			return nil, artifactMissing(id)
		}
		if a.damaged {
			return nil, c.m.verifyArtifact(id, false)
		}
		content := &artifactBytes{id: id, size: a.bytes, rotten: a.rotten}
		return &artifactFile{SectionReader: io.NewSectionReader(content, 0, a.bytes), digest: a.digest}, nil
	})
}

// artifactBytes is the made-up content of an artifact.
type artifactBytes struct {
	id     string
	size   int64
	rotten bool
}

func (b *artifactBytes) ReadAt(p []byte, off int64) (int, error) {
	if off >= b.size {
		return 0, io.EOF
	}
	n := int(min(int64(len(p)), b.size-off))
	fillArtifact(p[:n], b.id, off)
	if b.rotten && off == 0 && n > 0 {
		p[0] ^= 0xff
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// fillArtifact writes what an artifact holds from an offset on: the hash of its id, over and over.
func fillArtifact(p []byte, id string, off int64) {
	pattern := sha256.Sum256([]byte(id))
	n := copy(p, pattern[off%sha256.Size:])
	for n < len(p) {
		n += copy(p[n:], pattern[:])
	}
}

// artifactFile is an artifact open for reading.
type artifactFile struct {
	*io.SectionReader
	digest string
}

func (f *artifactFile) Digest() string { return f.digest }
func (f *artifactFile) Close() error   { return nil }
