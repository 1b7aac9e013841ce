package spore

import "time"

// ReplicaStatus is whether a template is usable on a node.
type ReplicaStatus string

const (
	ReplicaReady  ReplicaStatus = "READY"
	ReplicaFailed ReplicaStatus = "FAILED" // not, or not yet, usable; also the value at birth
)

// Replica is one template on one node, with the component versions that it was frozen with.
type Replica struct {
	TemplateID        string
	NodeID            string
	Status            ReplicaStatus
	Phase             string
	ArtifactID        string
	LastJobID         string
	ErrorMessage      string
	GuestImageVersion string // the kernel bundle
	AgentVersion      string
	KernelVersion     string
	Engine            string
	StateFormat       string
	UpdatedAt         time.Time
}
