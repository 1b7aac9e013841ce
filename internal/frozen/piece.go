package frozen

// PieceKind says what the data of a piece is.
type PieceKind string

const (
	BaseMemory  PieceKind = "memory"       // all guest RAM, raw, zero pages punched out
	MemoryLayer PieceKind = "memory-layer" // pages that differ from the layers below
	DiskImage   PieceKind = "disk"         // a whole disk, raw and sparse
	DiskLayer   PieceKind = "disk-layer"   // blocks that differ from the layers below
	DeviceState PieceKind = "state"        // vCPUs and devices, behind a header
)

// Piece names one immutable file of the store and how to know that it is still the one that was written.
type Piece struct {
	ID      string    `json:"id"`
	Kind    PieceKind `json:"kind"`
	Capture string    `json:"capture"` // the paused window it was taken in
	Size    int64     `json:"size"`    // of the data file, in bytes
	Digest  string    `json:"digest"`
}
