// Command jailer is a stand-in for Firecracker's jailer for tests: it makes the same chroot, devices, cgroups and process, and
// refuses what the real one refuses. Package fcdouble builds it.
package main

import (
	"fmt"
	"math"
	"os"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/internal/vmm/firecracker/fcdouble/flags"
	"github.com/sporevm/spore/internal/vmm/firecracker/fcdouble/rust"
)

// buildVersion is set by the linker; see fcdouble.Build.
var buildVersion = "1.17.0"

var known = []flags.Flag{
	{Name: "id", Required: true, Value: true}, {Name: "exec-file", Required: true, Value: true}, {Name: "uid", Required: true, Value: true},
	{Name: "gid", Required: true, Value: true}, {Name: "chroot-base-dir", Value: true, Default: "/srv/jailer"}, {Name: "netns", Value: true},
	{Name: "daemonize"}, {Name: "new-pid-ns"}, {Name: "cgroup", Multiple: true}, {Name: "resource-limit", Multiple: true},
	{Name: "cgroup-version", Value: true, Default: "1"}, {Name: "parent-cgroup", Value: true}, {Name: "version"},
}

// refusal is why the jailer ends; debug is its second form on standard error.
type refusal struct{ text, debug string }

func (e *refusal) Error() string { return e.text }

// Namespaces, cgroups and the root directory belong to threads: everything happens on the first one, and exec keeps what it has.
func init() { runtime.LockOSThread() }

func main() {
	err := run()
	if r, ok := err.(*refusal); err != nil && !since(13) && !(ok && strings.HasPrefix(r.debug, "ArgumentParsing")) {
		fmt.Fprintf(os.Stderr, "\nthread 'main' (%d) panicked at src/main.rs:1:1:\nJailer error: %s\n"+
			"note: run with `RUST_BACKTRACE=1` environment variable to display a backtrace\n", os.Getpid(), err)
		rust.Abort()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		if r, ok := err.(*refusal); ok {
			fmt.Fprintln(os.Stderr, "Error: "+r.debug)
		}
		os.Exit(1)
	}
}

// since says whether the emulated version is 1.minor or later.
func since(minor int) bool {
	parts := strings.Split(buildVersion, ".")
	n, err := strconv.Atoi(parts[min(1, len(parts)-1)])
	return err == nil && n >= minor
}

func run() error {
	// What else was inherited must not get into the jail. The runtime's own descriptors are closed by exec.
	if err := unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return failed("CloseRange", err, "Failed to call close range syscall")
	}
	os.Clearenv()
	set, refused := flags.Parse(known, os.Args[1:])
	if refused != nil {
		return &refusal{"Failed to parse arguments: " + refused.Error(), "ArgumentParsing(" + refused.Debug() + ")"}
	}
	if set.Has("help") || set.Has("version") {
		fmt.Printf("Jailer v%s\n\n", buildVersion)
		return nil
	}
	j, err := newJail(set)
	if err != nil {
		return err
	}
	return j.enter()
}
