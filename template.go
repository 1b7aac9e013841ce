package spore

import (
	"encoding/json"
	"strconv"
	"strings"
	"time"
)

// TemplateKind tells the two things that sandboxes start from apart.
type TemplateKind string

const (
	KindTemplate TemplateKind = "template" // built from an image, or committed from a sandbox
	KindSnapshot TemplateKind = "snapshot" // a point in a running sandbox's life
)

// TemplateStatus is where a template or snapshot stands.
type TemplateStatus string

const (
	TemplatePending        TemplateStatus = "PENDING"         // a template that is being built or committed
	TemplateCreating       TemplateStatus = "CREATING"        // a snapshot that is being captured
	TemplateReady          TemplateStatus = "READY"           // sandboxes can start from it
	TemplatePartiallyReady TemplateStatus = "PARTIALLY_READY" // ... on some of the nodes it was meant for
	TemplateFailed         TemplateStatus = "FAILED"          // no sandbox can start from it; LastError says why
	TemplateDeleting       TemplateStatus = "DELETING"        // hidden from lists; its bytes go when nothing stands on them
	TemplateDeleted        TemplateStatus = "DELETED"         // a tombstone, kept so that history can be told
)

// TemplateTransitions is the state machine of templates and snapshots.
var TemplateTransitions = Transitions[TemplateStatus]{
	TemplatePending:        {TemplateReady, TemplatePartiallyReady, TemplateFailed, TemplateDeleting},
	TemplateCreating:       {TemplateReady, TemplateFailed, TemplateDeleting},
	TemplateReady:          {TemplatePartiallyReady, TemplateFailed, TemplateDeleting},
	TemplatePartiallyReady: {TemplateReady, TemplateFailed, TemplateDeleting},
	TemplateFailed:         {TemplateReady, TemplatePartiallyReady, TemplateDeleting},
	TemplateDeleting:       {TemplateDeleted},
	TemplateDeleted:        {},
}

// Template is what sandboxes start from: a frozen VM with a name. Kind tells templates and snapshots apart; they share
// one namespace of ids and one of names.
type Template struct {
	ID     string
	Name   string // unique among live templates and snapshots; may be empty for a snapshot
	Kind   TemplateKind
	Status TemplateStatus

	Image      Image // what it was built from; for commits and snapshots, what their origin was built from
	ArtifactID string
	KernelID   string
	EgressCA   EgressCA
	Resources  Resources
	Process    Process
	Readiness  Readiness
	NIC        bool // it has a network device, without which its sandboxes have no network

	Version         string // of the form of the stored request; DefaultTemplateVersion
	Engine          string // that it was frozen under; replicas need nodes of the same
	StorageBackend  string // how its bytes are kept
	DisplayName     string // for people; need not be unique
	Retain          bool   // no policy removes it
	Policy          CompatPolicy
	Replicas        ReplicaPolicy
	RootfsSizeBytes int64  // of the root filesystem, artifact and disk, when it was frozen
	Request         []byte // JSON of the create request that sandboxes inherit; CreateDefaults

	Author string // who asked for it
	Reason string // why, as they put it

	ParentID      string // the template or snapshot that the origin sandbox stood on
	OriginSandbox string // for snapshots and commits
	OriginNode    string
	Ephemeral     bool // made by a fork of a running sandbox; goes when the last sandbox on it does
	Labels        map[string]string

	MemoryBytes int64 // kept for memory, beyond what the parent keeps
	DiskBytes   int64 // kept for the disk, beyond what the parent keeps
	LastError   string
	JobID       string // the job that made it
	CreatedAt   time.Time
	UpdatedAt   time.Time
}

// DefaultTemplateVersion is the version of templates that are made now.
const DefaultTemplateVersion = "v2"

// StorageBackendLayers keeps frozen VMs as layers above a base, and disks as clones.
const StorageBackendLayers = "layers"

// CreateDefaults is what sandboxes inherit from the template that they start from; what the caller asks for comes on top.
type CreateDefaults struct {
	TTLSeconds int               `json:"ttlSeconds,omitempty"`
	OnEnd      EndAction         `json:"onEnd,omitempty"`
	Env        map[string]string `json:"env,omitempty"`
	Labels     map[string]string `json:"labels,omitempty"`
	Network    *Network          `json:"network,omitempty"`
	Ports      []PortForward     `json:"ports,omitempty"`
	Limits     *Limits           `json:"limits,omitempty"`
	// Disks are those that a snapshot was taken with. They are not inherited: who starts from it must name them, with what was
	// on them then.
	Disks []Disk `json:"disks,omitempty"`
}

// Defaults reads what sandboxes inherit from it.
func (t *Template) Defaults() (d CreateDefaults, err error) {
	if len(t.Request) == 0 {
		return d, nil
	}
	if err := json.Unmarshal(t.Request, &d); err != nil {
		return d, Errorf(CodeDamaged, "what %s stores for its sandboxes cannot be read", t.Label()).WithCause(err)
	}
	return d, nil
}

// Startable says whether sandboxes can start from it now, and if not, why not.
func (t *Template) Startable() error {
	switch t.Status {
	case TemplateReady, TemplatePartiallyReady:
		return nil
	case TemplatePending, TemplateCreating:
		return Errorf(CodeBusy, "%s %s is still being made", t.Kind, t.Label()).WithHint("spore job watch %s", t.JobID)
	case TemplateDeleting, TemplateDeleted:
		return Errorf(CodeNotFound, "%s %s was deleted", t.Kind, t.Label())
	}
	return Errorf(CodeConflict, "%s %s failed: %s", t.Kind, t.Label(), t.LastError).WithHint("build it again, or start from another one")
}

// Label is what people call it: the name, or else the id.
func (t *Template) Label() string {
	if t.Name != "" {
		return t.Name
	}
	return t.ID
}

// Image says which image an artifact was built from.
type Image struct {
	Reference string // as the user wrote it
	Digest    string // of the manifest for Platform, "sha256:..."
	Platform  string // "linux/amd64"
}

// EgressCA says which certificate authority was added to an artifact's trust stores.
type EgressCA struct {
	Baked          bool
	Fingerprint    string // SHA-256 of the DER form, hex
	TargetsWritten int
}

// Process says what the image wants run, and as whom. It is also the default of `run` and `exec`.
type Process struct {
	Entrypoint []string
	Cmd        []string
	Env        []string // KEY=VALUE
	User       string   // name or uid, with an optional :group
	WorkDir    string
	StopSignal string
}

// Resources is the size of a VM. Two VMs of different size cannot share a frozen state, so it is fixed at build.
type Resources struct {
	VCPUs     int
	MemoryMiB int
	DiskMiB   int // the writable drive
}

// Limits of Resources. The largest VM is also bounded by what the machine has.
const (
	MaxVCPUs     = 64
	MinMemoryMiB = 128
	MaxMemoryMiB = 1 << 20
	MinDiskMiB   = 64
	MaxDiskMiB   = 16 << 20

	DefaultVCPUs     = 1
	DefaultMemoryMiB = 512
	DefaultDiskMiB   = 4096
)

// WithDefaults fills in what is zero.
func (r Resources) WithDefaults() Resources {
	if r.VCPUs == 0 {
		r.VCPUs = DefaultVCPUs
	}
	if r.MemoryMiB == 0 {
		r.MemoryMiB = DefaultMemoryMiB
	}
	if r.DiskMiB == 0 {
		r.DiskMiB = DefaultDiskMiB
	}
	return r
}

// Validate refuses sizes out of range, naming the field.
func (r Resources) Validate() error {
	switch {
	case r.VCPUs < 1 || r.VCPUs > MaxVCPUs:
		return Invalidf("vcpus", "%d is out of range", r.VCPUs).WithHint("between 1 and %d", MaxVCPUs)
	case r.MemoryMiB < MinMemoryMiB || r.MemoryMiB > MaxMemoryMiB:
		return Invalidf("memoryMiB", "%d is out of range", r.MemoryMiB).WithHint("between %d and %d MiB", MinMemoryMiB, MaxMemoryMiB)
	case r.DiskMiB < MinDiskMiB || r.DiskMiB > MaxDiskMiB:
		return Invalidf("diskMiB", "%d is out of range", r.DiskMiB).WithHint("between %d and %d MiB", MinDiskMiB, MaxDiskMiB)
	}
	return nil
}

// Readiness says when a booted template is ready to be frozen. With none of Command, TCPPort and HTTPPath set, it is
// ready when the agent answers.
type Readiness struct {
	Command  []string // exit code 0 means ready
	TCPPort  int      // something listens there
	HTTPPath string   // answers 2xx or 3xx on HTTPPort
	HTTPPort int      // 80 when zero
	Timeout  time.Duration
}

// DefaultReadinessTimeout bounds a readiness probe that sets no timeout.
const DefaultReadinessTimeout = 2 * time.Minute

// Validate refuses a probe that asks for two things, or for none that exists.
func (r Readiness) Validate() error {
	kinds := 0
	for _, set := range []bool{len(r.Command) > 0, r.TCPPort != 0, r.HTTPPath != ""} {
		if set {
			kinds++
		}
	}
	switch {
	case kinds > 1:
		return Invalidf("readiness", "more than one kind of probe").WithHint("give one of command, tcpPort and httpPath")
	case r.TCPPort < 0 || r.TCPPort > 65535:
		return Invalidf("readiness.tcpPort", "%d is not a port", r.TCPPort)
	case r.HTTPPort < 0 || r.HTTPPort > 65535:
		return Invalidf("readiness.httpPort", "%d is not a port", r.HTTPPort)
	case r.HTTPPath != "" && !strings.HasPrefix(r.HTTPPath, "/"):
		return Invalidf("readiness.httpPath", "%q does not begin with a slash", r.HTTPPath)
	case r.Timeout < 0 || r.Timeout > time.Hour:
		return Invalidf("readiness.timeoutSeconds", "%s is out of range", r.Timeout).WithHint("at most one hour")
	}
	return nil
}

func (r Readiness) String() string {
	switch {
	case len(r.Command) > 0:
		return "command " + strconv.Quote(strings.Join(r.Command, " "))
	case r.TCPPort != 0:
		return "TCP port " + strconv.Itoa(r.TCPPort)
	case r.HTTPPath != "":
		port := r.HTTPPort
		if port == 0 {
			port = 80
		}
		return "HTTP GET :" + strconv.Itoa(port) + r.HTTPPath
	}
	return "agent answers"
}
