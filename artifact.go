package spore

import "time"

// ArtifactStatus is where an artifact stands.
type ArtifactStatus string

const (
	ArtifactPending        ArtifactStatus = "PENDING"         // asked for; nobody builds it yet
	ArtifactBuilding       ArtifactStatus = "BUILDING"        // one job builds it, and all others wait for that
	ArtifactReady          ArtifactStatus = "READY"           // complete; its digest is known
	ArtifactFailed         ArtifactStatus = "FAILED"          // the build broke, or its file was lost; it may be built again
	ArtifactCleanupPending ArtifactStatus = "CLEANUP_PENDING" // nothing refers to it; its bytes are being removed
	ArtifactOrphaned       ArtifactStatus = "ORPHANED"        // its builder died, and nothing refers to it
)

// ArtifactTransitions is the state machine of artifacts. An artifact whose bytes are all gone has no row.
var ArtifactTransitions = Transitions[ArtifactStatus]{
	ArtifactPending:        {ArtifactBuilding, ArtifactOrphaned, ArtifactCleanupPending},
	ArtifactBuilding:       {ArtifactReady, ArtifactFailed, ArtifactOrphaned},
	ArtifactReady:          {ArtifactFailed, ArtifactCleanupPending},
	ArtifactFailed:         {ArtifactBuilding, ArtifactReady, ArtifactCleanupPending}, // READY: its bytes were found after all
	ArtifactCleanupPending: {ArtifactReady, ArtifactBuilding},                         // it is wanted again
	ArtifactOrphaned:       {ArtifactBuilding, ArtifactCleanupPending},
}

// ArtifactSpec asks for an artifact: which image, and what to add to it.
type ArtifactSpec struct {
	Reference string
	Insecure  bool
	EgressCA  []byte // PEM; empty for none
}

// Artifact is a read-only root filesystem, and what its image says of the process to run. Its ID is the hash of exactly the
// inputs that change its bytes, so two builds of one ID are one build.
type Artifact struct {
	ID        string
	Status    ArtifactStatus
	Image     Image
	Process   Process
	EgressCA  EgressCA
	Digest    string // of the filesystem's bytes, "sha256:..."
	SizeBytes int64
	Reused    bool // it was there already; not kept

	BuildJobID string    // the job that builds it, while it is BUILDING
	LastError  string    // why it is FAILED
	UnusedAt   time.Time // since when nothing refers to it; zero while something does
	TriedAt    time.Time // when its removal was last tried; those tried longest ago come first
	CreatedAt  time.Time
	UpdatedAt  time.Time
}

// Placement says that a node was given an artifact. It outlives replicas, so that cleanup knows where bytes may lie.
type Placement struct {
	ArtifactID string
	NodeID     string
	VerifiedAt time.Time // when its bytes were last found to be what they should be
	CreatedAt  time.Time
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
	EngineVersion string
	StateFormat   string
	CPU           string
}

// Components are the versions that f was frozen with.
func (f *Frozen) Components() Components {
	return Components{GuestImage: f.KernelID, Agent: f.AgentVersion, Kernel: f.KernelVersion, Engine: f.Engine, EngineVersion: f.EngineVersion, StateFormat: f.StateFormat, CPU: f.CPU}
}
