package spore

import "time"

// LineageEntry is one definition in a history: what it came of, by whom and why.
type LineageEntry struct {
	ID            string
	Name          string
	Kind          TemplateKind
	Status        TemplateStatus
	ParentID      string
	OriginSandbox string
	Author        string
	Reason        string
	Labels        map[string]string
	Aliases       []string
	CreatedAt     time.Time
}

// Diff says what changed between two frozen VMs.
type Diff struct {
	From, To      string
	Files         []FileChange
	FilesOmitted  int // changes beyond those listed
	MemoryChanged int64
	MemoryTotal   int64
	DiskChanged   int64 // bytes of the disk, in blocks that differ
}

// FileChange is one file that differs.
type FileChange struct {
	Path      string
	Kind      ChangeKind
	SizeFrom  int64
	SizeTo    int64
	Directory bool
}

// ChangeKind is how a file differs.
type ChangeKind string

const (
	ChangeAdded    ChangeKind = "added"
	ChangeRemoved  ChangeKind = "removed"
	ChangeModified ChangeKind = "modified" // contents, mode or owner
)
