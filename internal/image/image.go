// Package image turns OCI images into artifacts: read-only ext4 root filesystems, stored under an id that is the hash of
// exactly the inputs that change their bytes.
//
// A Store keeps two kinds of things below its directory. Blobs are what images consist of, under their digests, shared by
// all images. Artifacts are what was built from them. Everything is written aside, below tmp, and renamed into place
// when it is complete; what a crash leaves below tmp is removed by the next Open.
package image

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"time"

	spore "github.com/sporevm/spore"
)

// FormatVersion is the version of what the builder writes for given layers. It is part of every artifact's id.
const FormatVersion = 1

// Image says which image it is, for one platform.
type Image struct {
	Reference      string `json:"reference"`      // as it was asked for
	ManifestDigest string `json:"manifestDigest"` // of the platform's manifest; the image id where there is none
	ConfigDigest   string `json:"configDigest"`   // also known as the image id
	Platform       string `json:"platform"`       // such as "linux/amd64"
}

// Config is what an image says about the process to run in it.
type Config struct {
	Entrypoint   []string          `json:"entrypoint,omitempty"`
	Cmd          []string          `json:"cmd,omitempty"`
	Env          []string          `json:"env,omitempty"`
	User         string            `json:"user,omitempty"`
	WorkingDir   string            `json:"workingDir,omitempty"`
	StopSignal   string            `json:"stopSignal,omitempty"`
	ExposedPorts []string          `json:"exposedPorts,omitempty"` // such as "8080/tcp", sorted
	Labels       map[string]string `json:"labels,omitempty"`
	Volumes      []string          `json:"volumes,omitempty"` // sorted
}

// HasCommand says whether the image names anything to run.
func (c Config) HasCommand() bool { return len(c.Entrypoint) > 0 || len(c.Cmd) > 0 }

// EgressCA is the certificate that was baked into an artifact.
type EgressCA struct {
	Fingerprint string   `json:"fingerprint"` // SHA-256 of the DER form, in hex
	Targets     []string `json:"targets"`     // files that were written for it; none if the image had it already
}

// Artifact is a root filesystem in the store. It is the same for all images that have the same layers.
type Artifact struct {
	ID             string    `json:"id"`
	Digest         string    `json:"digest"` // "sha256:" and the SHA-256 of the whole file
	SizeBytes      int64     `json:"sizeBytes"`
	AllocatedBytes int64     `json:"allocatedBytes"` // what it takes up on the disk
	Architecture   string    `json:"architecture"`
	FormatVersion  int       `json:"formatVersion"`
	DiffIDs        []string  `json:"diffIds"` // digests of the uncompressed layers, bottom first
	EgressCA       *EgressCA `json:"egressCA,omitempty"`
	CreatedAt      time.Time `json:"createdAt"`

	Path string `json:"-"` // of the file, for the hypervisor
}

// Result is what Build answers: the artifact, and what is particular to the image that was asked for.
type Result struct {
	Artifact *Artifact
	Image    Image
	Config   Config
	Reused   bool // the artifact was there already
}

// artifactID is the id of the artifact that comes from layers with these digests of their uncompressed form, for an
// architecture, with the certificate of a fingerprint ("" for none) baked in.
func artifactID(diffIDs []string, arch, caFingerprint string) string {
	h := sha256.New()
	fmt.Fprintf(h, "spore root filesystem\nformat %d\narchitecture %s\negress-ca %s\n", FormatVersion, arch, caFingerprint)
	for _, d := range diffIDs {
		fmt.Fprintf(h, "layer %s\n", d)
	}
	return spore.ArtifactPrefix + hex.EncodeToString(h.Sum(nil))[:24]
}
