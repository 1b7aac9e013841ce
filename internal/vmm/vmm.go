// Package vmm is the contract that every hypervisor engine fulfils: boot a VM, pause it, save its device state, show its
// memory from outside, and thaw it again on a base memory file plus patches.
//
// An engine moves no files and knows no templates: it is given paths, a working directory of the VM's own, and the
// bytes to patch in. What a frozen VM looks like on disk is the business of package frozen. Package vmmtest holds the
// conformance suite that every engine passes.
package vmm

import (
	"context"
	"io"
	"net"
	"os"
)

// Engine starts VMs. Its methods may be called from many goroutines at once.
type Engine interface {
	// Name is the short name that manifests and the CLI use: "qemu", "sim".
	Name() string

	// Probe says what the engine is and can do on this host. It may boot a small VM to find out whether hardware
	// acceleration really runs a guest; it is bounded in time and remembers its verdict. It fails with
	// spore.CodeUnsupported when the hypervisor is missing or too old.
	Probe(ctx context.Context) (Info, error)

	// Boot starts a VM from its kernel, running. Its RAM lives in the file cfg.Memory, which Boot creates (it must not
	// exist) and which, once the VM is paused for good and SaveState has been called, is the memory snapshot. On error nothing is left running and
	// no file is left but what the caller made.
	Boot(ctx context.Context, cfg Config) (VM, error)

	// Thaw starts a VM from frozen memory and device state and returns it paused, ready for Resume. cfg.Memory is
	// mapped copy-on-write and never written. The patches are applied before the device state is loaded, because
	// devices check their queues in guest RAM as they load. On error nothing is left running.
	Thaw(ctx context.Context, cfg Config, from Image) (VM, error)

	// Adopt takes over a VM that an earlier process of the server started in cfg.Dir with the same cfg. It fails with
	// spore.CodeNotFound when no such process lives (the error's message says how it ended, when that is known).
	Adopt(ctx context.Context, cfg Config) (VM, error)

	// Clean ends the VM process in dir, if one still lives, and waits for its end. It is for directories whose owner is
	// gone. It touches only the process that was started for dir, never one that merely has the same pid.
	Clean(ctx context.Context, dir string) error
}

// Info describes an engine on this host. A frozen VM records it, since device state is only read back by the same kind
// of hypervisor.
type Info struct {
	Engine      string // Engine.Name
	Version     string // of the hypervisor, such as "7.2.22"
	Accel       string // "kvm", "tcg" or "sim"
	AccelReason string // why not kvm, in one sentence; empty with kvm
	StateFormat string // device state written under one StateFormat loads under the same one
	CPUModel    string // the CPU model guests see
	CPUFeatures string // what guests use of this host's processor and another may lack; empty when it is emulated
}

// Config is the shape of one VM. The same Config must be used to thaw what it froze: device state fits one shape only.
type Config struct {
	ID  string // the sandbox's id; appears in process titles and logs
	Dir string // working directory, made by the caller, owned by this VM alone; the engine keeps sockets, pid file and logs there

	VCPUs     int
	MemoryMiB int

	Kernel  string // bzImage
	Initrd  string
	Cmdline string // appended to what the engine itself needs

	Memory string // Boot: RAM file to create. Thaw: base RAM file, immutable. Adopt: as it was.
	Drives []Drive
	NIC    *NIC `json:",omitempty"` // nil: the VM has no network device
}

// NIC is the network device of a VM. That there is one belongs to the shape, and so does MAC; where its cable leads does not: a
// VM may be frozen with one and thawed with another. At most one of Tap and Socket is set; with neither the cable is unplugged.
type NIC struct {
	MAC    string
	NetNS  string `json:",omitempty"` // path of the network namespace that Tap is in
	Tap    string `json:",omitempty"` // name of a TAP device without vnet headers
	Socket string `json:",omitempty"` // path of a Unix stream socket that takes Ethernet frames, each after its length in 4 bytes, big-endian
}

// Drive is one block device of the guest. The guest finds it as /dev/disk/by-id/virtio-ID or by its serial.
type Drive struct {
	ID       string // at most 20 bytes of [a-z0-9]; the guest sees it as the drive's serial
	Path     string // a raw image, or a block device
	ReadOnly bool
	// Foreign drives belong to the caller: nothing about them is changed but what the guest writes.
	Foreign bool        `json:",omitempty"`
	Limits  DriveLimits `json:",omitzero"`
}

// DriveLimits bound what a guest does with one drive, reads and writes together; 0 is no bound.
type DriveLimits struct {
	BytesPerSecond int64 `json:",omitempty"`
	OpsPerSecond   int64 `json:",omitempty"`
}

// Throttler is a VM whose drives' limits can be changed while it lives.
type Throttler interface {
	// LimitDrive sets the limits of a drive, given by its id. It fails with spore.CodeNotFound when there is no such drive.
	LimitDrive(ctx context.Context, id string, l DriveLimits) error
}

// Replugger is a VM whose network cable can be led elsewhere while it lives.
type Replugger interface {
	// Replug leads the cable of NIC.Socket to the one of nic, which may be the same path with another process behind it. The guest
	// notices nothing but that frames are lost. It may stand still meanwhile, and runs on if it ran. It fails with
	// spore.CodeUnsupported when the VM has no such cable; after another failure the cable may lead nowhere, and it can be tried again.
	Replug(ctx context.Context, nic NIC) error
}

// Grouped is a VM whose process was started in control groups, under limits that hold for as long as it stays in them.
type Grouped interface {
	// Cgroups are the directories of these groups. They go with the process.
	Cgroups() []string
}

// Reclaimer is a VM whose memory the host can take back while it is idle.
type Reclaimer interface {
	// Reclaim moves what the VM holds of memory for itself to the host's swap and tells how many bytes went. The guest
	// notices nothing but that what it uses again is slow at first. It fails with spore.CodeUnsupported where the host
	// cannot: without swap there is nowhere to put a guest's pages. What a VM shares with its base memory file is not
	// meant: it is there once for all, and the host drops it by itself.
	Reclaim(ctx context.Context) (int64, error)
}

// Image is what a VM is thawed from, beside its Config.
type Image struct {
	// State is an open file positioned at the start of the device state. The engine does not close it.
	State *os.File
	// Patches yields the pages that differ from the base memory file; nil when there are none.
	Patches Patches
}

// Patches yields runs of guest RAM, oldest layer first: a later run overrides an earlier one. The data is only valid
// during the call. Offsets and lengths are multiples of PageSize. An error of fn ends the walk and is returned.
type Patches interface {
	Each(ctx context.Context, fn func(offset int64, data []byte) error) error
}

// PageSize is the unit of guest memory, in bytes.
const PageSize = 4096

// Ports of the agent channel that every VM has. Each is a byte stream between host and guest; package guest says what
// flows there.
const (
	PortControl = "spore.control"
	PortData    = "spore.data"
)

// State of a VM process.
type State string

const (
	StateRunning State = "running"
	StatePaused  State = "paused"
	StateExited  State = "exited"
)

// VM is one running or paused virtual machine. Methods may be called from many goroutines; Pause, Resume and SaveState
// are serialised by the engine. After the VM has exited every method but Done, Err, Console and Release answers
// spore.CodeConflict.
type VM interface {
	PID() int // of the hypervisor process, or 0 when the engine has none
	State() State

	Pause(ctx context.Context) error  // all vCPUs stand still and block I/O is flushed when it returns; idempotent
	Resume(ctx context.Context) error // idempotent

	// SaveState writes vCPU and device state, without memory, to out. The VM must be paused; it stays paused and can
	// be resumed. It may end the connections of DialPort: an engine whose guests are cut off by it closes them.
	SaveState(ctx context.Context, out *os.File) error

	// Memory shows guest RAM from outside. It stays valid until the VM exits.
	Memory() (Memory, error)

	// DialPort opens the host's end of an agent port. A second dial of one port replaces the first. A guest that was just thawed may
	// hang up on whoever comes first: what counts is what the guest answers, and who is hung up on dials again.
	DialPort(ctx context.Context, port string) (net.Conn, error)

	// Console is what the guest wrote to its serial console so far, at most the last limit bytes.
	Console(limit int) ([]byte, error)

	// Shutdown asks the guest to power off in order and waits until it has, or ctx ends.
	Shutdown(ctx context.Context) error
	// Kill ends the VM now and waits until the process is gone. Idempotent.
	Kill(ctx context.Context) error

	Done() <-chan struct{} // closed when the VM has exited, whatever the reason
	Err() error            // after Done: why, nil for Kill or an orderly power-off

	// Release lets go of the VM without ending it, so that a later process can Adopt it.
	Release() error
}

// Memory is guest RAM seen from outside: addressed from 0 to Size, in the order of the memory file.
type Memory interface {
	io.ReaderAt
	Size() int64

	// Private lists, in ascending order, the runs of pages that this VM holds for itself: those written since it was
	// thawed (patches count as written). Pages that the host has swapped out are private too. For a booted VM, whose
	// RAM file is shared, it is unsupported: the file is the memory. It may answer spore.CodeConflict while the VM runs, when only one
	// that stands still can be asked.
	Private(ctx context.Context) ([]Range, error)

	// Track starts to watch for writes; Written then lists pages written since the latest Track. Both answer
	// spore.CodeUnsupported where the host cannot tell (a kernel without soft-dirty bits): the caller must then treat
	// all private pages as written. Written may name too many pages, never too few.
	Track(ctx context.Context) error
	Written(ctx context.Context) ([]Range, error)
}

// Range is a run of guest RAM in bytes; both fields are multiples of PageSize.
type Range struct {
	Offset, Length int64
}

// End is the first byte after the range.
func (r Range) End() int64 { return r.Offset + r.Length }
