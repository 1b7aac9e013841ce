// Package bare drives a stock QEMU by hand, as a short script would. It is the floor that Spore's times are held
// against: the same hypervisor, machine, memory, device state, disk and guest agent, and nothing around them - no control
// plane, no rows, no identity, no seccomp filter, no user or root directory of the VM's own.
package bare

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/sporevm/spore/internal/guest"
	"github.com/sporevm/spore/internal/vmm/qemu/qmp"
)

// Machine is a VM as arguments of QEMU and the files that they name, by the names under which they are linked into the
// working directory.
type Machine struct {
	Hypervisor string
	Args       []string // without what says where it comes from: a kernel, or frozen memory
	Memory     string   // the frozen memory, mapped copy-on-write
	State      string   // the frozen device state
	Disk       string   // the frozen disk; every VM gets a copy
	Links      map[string]string
	Kernel     string
	Initrd     string
	Append     string // to the kernel's command line
	MemoryMiB  int
}

// Names of files in the working directory, which the arguments use.
const (
	memoryLink = "memory"
	diskLink   = "drive-disk"
)

// VM is one running QEMU.
type VM struct {
	dir     string
	process *os.Process
	ended   chan struct{}
	monitor *qmp.Client
	agent   *guest.Agent
}

// Prepare makes a working directory with a copy of the disk. It is not part of what is timed: a script would have to
// copy the disk as well, so the floor is lower than any script.
func (m *Machine) Prepare(ctx context.Context, dir string) error {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	for name, target := range m.Links {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	return copySparse(ctx, m.Disk, filepath.Join(dir, diskLink))
}

// Thaw starts a VM from the frozen state in a prepared directory, lets it run and finds its agent.
func (m *Machine) Thaw(ctx context.Context, dir string) (*VM, error) {
	if err := os.Symlink(m.Memory, filepath.Join(dir, memoryLink)); err != nil {
		return nil, err
	}
	vm, err := m.start(ctx, dir, append(m.Args, m.ram("off")...), "-incoming", "defer")
	if err != nil {
		return nil, err
	}
	if err := vm.load(ctx, m.State); err != nil {
		return nil, errors.Join(err, vm.Stop())
	}
	return vm.meet(ctx)
}

// Boot starts a VM from its kernel in a prepared directory and finds its agent.
func (m *Machine) Boot(ctx context.Context, dir string) (*VM, error) {
	vm, err := m.start(ctx, dir, append(m.Args, m.ram("on")...), "-kernel", m.Kernel, "-initrd", m.Initrd, "-append", m.Append)
	if err != nil {
		return nil, err
	}
	return vm.meet(ctx)
}

func (m *Machine) ram(share string) []string {
	return []string{"-object", fmt.Sprintf("memory-backend-file,id=ram,size=%dM,mem-path=%s,share=%s", m.MemoryMiB, memoryLink, share)}
}

func (m *Machine) start(ctx context.Context, dir string, args []string, more ...string) (*VM, error) {
	log, err := os.Create(filepath.Join(dir, "qemu.log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	process, err := os.StartProcess(m.Hypervisor, append(append([]string{m.Hypervisor}, args...), more...), &os.ProcAttr{
		Dir: dir, Files: []*os.File{nil, log, log}, Env: []string{"PATH=/usr/bin:/bin"},
	})
	if err != nil {
		return nil, err
	}
	vm := &VM{dir: dir, process: process, ended: make(chan struct{})}
	go func() {
		process.Wait() // how it ended is in the log
		close(vm.ended)
	}()
	conn, err := vm.dial(ctx, "qmp")
	if err == nil {
		vm.monitor = qmp.New(conn, nil)
		err = vm.monitor.Start(ctx)
	}
	if err != nil {
		said, readErr := os.ReadFile(filepath.Join(dir, "qemu.log"))
		return nil, errors.Join(fmt.Errorf("QEMU did not start: %w: %s", err, said), readErr, vm.Stop())
	}
	return vm, nil
}

// dial connects to a socket of QEMU's as soon as it is there.
func (vm *VM) dial(ctx context.Context, name string) (*net.UnixConn, error) {
	for {
		conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Net: "unix", Name: filepath.Join(vm.dir, name+".sock")})
		if err == nil {
			return conn, nil
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(err, ctx.Err())
		case <-vm.ended:
			return nil, errors.New("it ended")
		case <-time.After(200 * time.Microsecond):
		}
	}
}

// load reads the device state.
func (vm *VM) load(ctx context.Context, path string) error {
	state, err := os.Open(path)
	if err != nil {
		return err
	}
	defer state.Close()
	call, err := vm.monitor.Send("getfd", map[string]string{"fdname": "state"}, state)
	if err != nil {
		return err
	}
	if err := call.Wait(ctx, nil); err != nil {
		return err
	}
	if err := vm.monitor.Do(ctx, "migrate-incoming", map[string]string{"uri": "fd:state"}, nil); err != nil {
		return err
	}
	return vm.migrated(ctx)
}

// migrated waits until a migration has ended, in or out.
func (vm *VM) migrated(ctx context.Context) error {
	for {
		var progress struct {
			Status string `json:"status"`
			Desc   string `json:"error-desc"`
		}
		if err := vm.monitor.Do(ctx, "query-migrate", nil, &progress); err != nil {
			return err
		}
		switch progress.Status {
		case "completed":
			return nil
		case "failed", "cancelled":
			return fmt.Errorf("the migration is %s: %s", progress.Status, progress.Desc)
		}
		time.Sleep(200 * time.Microsecond)
	}
}

// meet lets the guest run and finds its agent. On error nothing is left running.
func (vm *VM) meet(ctx context.Context) (*VM, error) {
	err := vm.monitor.Do(ctx, "cont", nil, nil)
	if err == nil {
		vm.agent, err = guest.Connect(ctx, func(ctx context.Context, port string) (net.Conn, error) {
			return vm.dial(ctx, strings.TrimPrefix(port, "spore."))
		}, guest.Watcher{})
	}
	if err != nil {
		return nil, errors.Join(err, vm.Stop())
	}
	return vm, nil
}

// Run runs a command in the guest. Any exit code but 0 is an error.
func (vm *VM) Run(ctx context.Context, path string, args ...string) error {
	res, err := vm.agent.Run(ctx, guest.Command{Path: path, Args: args})
	if err == nil && res.ExitCode != 0 {
		err = fmt.Errorf("%s: %s: %s", path, res.Status, res.Stderr)
	}
	return err
}

// PID is QEMU's process.
func (vm *VM) PID() int { return vm.process.Pid }

// Stop ends the VM and waits for its end. It removes the working directory.
func (vm *VM) Stop() error {
	if vm.agent != nil {
		vm.agent.Close() // an error of this end says nothing: the other is about to be killed
	}
	if vm.monitor != nil {
		vm.monitor.Close()
	}
	err := vm.process.Kill()
	if errors.Is(err, os.ErrProcessDone) {
		err = nil
	}
	<-vm.ended
	return errors.Join(err, os.RemoveAll(vm.dir))
}
