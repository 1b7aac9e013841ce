// Package fcdouble builds stand-ins for Firecracker and its jailer, for tests of what drives them: programs that keep to the rules
// of the real ones (order of calls, fields, states, the words of errors, exit codes) and work on real memory files, drives, TAPs
// and sockets, with a program of ours in place of a guest.
//
// A test starts with
//
//	b := fcdouble.Build(t, fcdouble.Options{Version: "1.16.1"})
//	cmd := exec.Command(b.Firecracker, "--api-sock", sock, "--id", "x", "--log-path", log)
//
// and goes on as with the real program. What it takes over from the real one and a test may trip on:
//
//   - The serial console is standard output, and so is the log unless --log-path is given. There is only a console when the boot
//     arguments say console=ttyS0.
//   - A log or metrics file is written over from its start; before 1.14 it must be there already.
//   - Neither the API's socket nor the vsock socket is ever removed. Loading where the vsock socket exists fails.
//   - Loading opens the drives, TAPs and the vsock socket by the paths in the state file. A load that fails is answered, and then
//     the process ends with code 1.
//   - Nothing is answered on vsock while the VM is paused. A snapshot resets the connections of the VM it is taken of: the guest has
//     lost them when it runs again, and the host learns of it when it sends something.
//   - The process ends with code 0 when the guest restarts, in order or by a panic; a panic is seen on the console only, and without
//     panic=N among the boot arguments the VM hangs. A guest that powers itself off is taken for one that restarts.
//   - /dev/kvm must not be forbidden to the process, though no guest runs on it.
//   - The kernel must be ELF, or from 1.17 on a bzImage.
//   - The jailer clears the environment, and refuses a chroot that was used before.
//
// The guest keeps what it knows in guest memory. It listens on the vsock ports Options.ControlPort and Options.DataPort, is held to
// the limiters of its drives, and answers the frames of package vmmtest on its TAP. There is no MMDS, no CPU template of one's own,
// no pmem and no hotplug, and a balloon takes nothing from the guest.
//
// The tests of this package ask a real Firecracker and a real jailer the same and compare, when SPORE_FIRECRACKER and SPORE_JAILER
// name them: a difference is a fault of the stand-in.
package fcdouble

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
)

// The guests that a stand-in can have.
const (
	// GuestSuite answers the commands of package vmmtest.
	GuestSuite = "suite"
	// GuestAgent is the agent of simulated VMs: Spore's own protocol, every command ends well at once.
	GuestAgent = "agent"
)

// DefaultVersion is emulated when Options.Version is empty.
const DefaultVersion = "1.17.0"

// Versions are one release of each version that can be emulated, oldest first.
var Versions = []string{"1.10.1", "1.11.0", "1.12.1", "1.13.1", "1.14.1", "1.15.1", "1.16.1", DefaultVersion}

// The vsock ports that a guest listens on by default.
const (
	DefaultControlPort = 1024
	DefaultDataPort    = 1025
)

// Options choose what is built. They are part of the program, since the jailer passes no environment on.
type Options struct {
	Version               string // default DefaultVersion
	Guest                 string // default GuestSuite
	ControlPort, DataPort uint32 // default DefaultControlPort and DefaultDataPort
}

// Binaries are the paths of the stand-ins: statically linked, each named as the original.
type Binaries struct{ Firecracker, Jailer string }

type build struct {
	once sync.Once
	dir  string
	bin  Binaries
	err  error
}

var builds = struct {
	sync.Mutex
	by map[Options]*build
}{by: map[Options]*build{}}

// Build makes the stand-ins, once for each Options in a test process. The programs stay until Clean, which TestMain should call.
func Build(t testing.TB, o Options) Binaries {
	t.Helper()
	if o.Version == "" {
		o.Version = DefaultVersion
	}
	if o.Guest == "" {
		o.Guest = GuestSuite
	}
	if o.ControlPort == 0 {
		o.ControlPort = DefaultControlPort
	}
	if o.DataPort == 0 {
		o.DataPort = DefaultDataPort
	}
	builds.Lock()
	b := builds.by[o]
	if b == nil {
		b = &build{}
		builds.by[o] = b
	}
	builds.Unlock()
	b.once.Do(func() { b.make(o) })
	if b.err != nil {
		t.Fatal(b.err)
	}
	return b.bin
}

// Clean removes every program that Build has made.
func Clean() error {
	builds.Lock()
	defer builds.Unlock()
	for o, b := range builds.by {
		if err := os.RemoveAll(b.dir); err != nil {
			return err
		}
		delete(builds.by, o)
	}
	return nil
}

func (b *build) make(o Options) {
	if b.dir, b.err = os.MkdirTemp("", "fcdouble"); b.err != nil {
		return
	}
	const home = "github.com/sporevm/spore/internal/vmm/firecracker/fcdouble/cmd/"
	flags := fmt.Sprintf("-s -w -X main.buildVersion=%s -X main.buildGuest=%s -X main.buildControl=%d -X main.buildData=%d",
		o.Version, o.Guest, o.ControlPort, o.DataPort)
	for _, p := range []struct {
		name string
		path *string
	}{{"firecracker", &b.bin.Firecracker}, {"jailer", &b.bin.Jailer}} {
		*p.path = filepath.Join(b.dir, p.name)
		cmd := exec.Command("go", "build", "-trimpath", "-ldflags="+flags, "-o", *p.path, home+p.name)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-buildvcs=false")
		if out, err := cmd.CombinedOutput(); err != nil {
			b.err = fmt.Errorf("build the stand-in for %s: %w\n%s", p.name, err, out)
			return
		}
	}
}
