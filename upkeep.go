package spore

// CheckReport lists what is damaged. Empty Problems: all is well.
type CheckReport struct {
	Full     bool           `json:"full"`
	Objects  int            `json:"objects"`
	Bytes    int64          `json:"bytes"` // read
	Problems []CheckProblem `json:"problems"`
}

// CheckProblem is one finding of a check.
type CheckProblem struct {
	Object string `json:"object"`
	Kind   string `json:"kind"` // "damaged", "missing", "orphan", "row"
	Detail string `json:"detail"`
	Hint   string `json:"hint"`
}

// GarbageReport says what was, or would be, freed.
type GarbageReport struct {
	DryRun bool          `json:"dryRun"`
	Bytes  int64         `json:"bytes"`
	Items  []GarbageItem `json:"items"`
}

// GarbageItem is one thing that nothing holds any more.
type GarbageItem struct {
	ID     string `json:"id"`
	Kind   string `json:"kind"`
	Bytes  int64  `json:"bytes"`
	Reason string `json:"reason"`
}

// Usage is the exact bytes of a frozen state on a node, as allocated on the disk.
type Usage struct {
	ExclusiveBytes   int64    // that no other frozen state shares
	SharedBytes      int64    // that others stand on as well
	ReclaimableBytes int64    // that removing it would free, once collected
	StandsOn         []string // artifact and kernel
	HeldBy           []string // other frozen states, and sandboxes, that hold some of its bytes
}
