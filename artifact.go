package spore

import "time"

// ArtifactStatus is where an artifact stands.
type ArtifactStatus string

const (
	ArtifactPending        ArtifactStatus = "PENDING"
	ArtifactBuilding       ArtifactStatus = "BUILDING"
	ArtifactReady          ArtifactStatus = "READY"
	ArtifactFailed         ArtifactStatus = "FAILED"
	ArtifactCleanupPending ArtifactStatus = "CLEANUP_PENDING"
	ArtifactOrphaned       ArtifactStatus = "ORPHANED"
)

// ArtifactSpec asks for an artifact: which image, and what to add to it.
type ArtifactSpec struct {
	Reference string
	Insecure  bool
	EgressCA  []byte // PEM; empty for none
}

// Artifact is a read-only root filesystem on a node, and what its image says of the process to run.
type Artifact struct {
	ID        string
	Image     Image
	Process   Process
	EgressCA  EgressCA
	Digest    string // of the filesystem's bytes
	SizeBytes int64
	Reused    bool // it was there already
}

// Frozen says what a freeze kept, and how long the guest stood still for it.
type Frozen struct {
	ID          string
	MemoryBytes int64 // kept beyond what the parent keeps
	DiskBytes   int64
	Paused      time.Duration // the guest stood still
	Total       time.Duration // until everything was on disk
	ChainDepth  int           // memory layers above the base

	KernelID      string
	KernelVersion string
	AgentVersion  string
	Engine        string
	StateFormat   string
}
