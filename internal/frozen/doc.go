// Package frozen is the on-disk form of a frozen VM: manifest, memory layers, disk layers, integrity, mark and sweep.
//
// # What is stored
//
// A store is a directory of immutable pieces and of manifests that name them:
//
//	manifests/ID          what one frozen VM consists of; written last, so what is listed is whole
//	pieces/PIECE/data     a base memory file, memory layer, disk image, disk layer or device state
//	pieces/PIECE/stamp    what the piece is: kind, capture, size, digest
//	pieces/PIECE/data.seen  how a raw file looked when it was last verified (see Verifier)
//	pieces/PIECE/data.hot   what a guest touches first after a thaw of the memory that this piece is the top of
//	leases/LEASE          pieces that a live process has open; the holder keeps the file locked
//	pins/NAME             the manifest that a running VM stands on; outlives the server
//	staging/DRAFT/        what is being written; the writer keeps staging/DRAFT/owner locked
//	lock                  orders publishing against sweeping, between processes too
//
// A capture is one paused window. Its random id is stamped on each piece taken in it, so that memory, disk and device
// state of different instants are never thawed together.
//
// # Crash safety
//
// Everything is written under staging, synced, and renamed into place; the manifest comes last. A process that dies
// leaves at most an unlocked staging directory, which the next Open removes, and pieces that no manifest names, which
// the next sweep removes.
package frozen
