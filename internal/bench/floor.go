package bench

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sporevm/spore/api"
	"github.com/sporevm/spore/client"
	"github.com/sporevm/spore/internal/bench/bare"
	"github.com/sporevm/spore/internal/frozen"
	"github.com/sporevm/spore/internal/kernel"
)

// floorNote says what the bare thaw is.
const floorNote = "the bare thaw is QEMU driven by hand: start, map the template's own memory file, load its device state, run on, " +
	"find the agent, run the command. Its disk was copied before the clock started, it gives the guest no identity, and it has no walls around it"

// floorTimeout bounds one run of the floor, so that a hypervisor that hangs is a failure and not the end of the run.
const floorTimeout = 3 * time.Minute

// floor is the bare hypervisor on one template's frozen bytes.
type floor struct {
	machine *bare.Machine
	dir     string
	count   int
}

// prepare answers a template of that size and its floor.
func (l *lab) prepare(ctx context.Context, memoryMiB int) (*api.Template, *floor, error) {
	t, err := l.template(ctx, memoryMiB)
	if err != nil {
		return nil, nil, err
	}
	if f := l.floors[memoryMiB]; f != nil {
		return t, f, nil
	}
	f, err := l.newFloor(ctx, t)
	if err != nil {
		return nil, nil, fmt.Errorf("the floor: %w", err)
	}
	if l.floors == nil {
		l.floors = map[int]*floor{}
	}
	l.floors[memoryMiB] = f
	// The same warming up that a template gets.
	for range 2 {
		if err := f.thaw(ctx, func(*bare.VM) error { return nil }); err != nil {
			return nil, nil, fmt.Errorf("the floor: %w", err)
		}
	}
	return t, f, nil
}

// newFloor takes a template's frozen bytes out of the server's store, and the shape of the machine from a sandbox of it.
func (l *lab) newFloor(ctx context.Context, t *api.Template) (*floor, error) {
	f := &floor{dir: filepath.Join(l.dir, "floor-"+strconv.Itoa(t.MemoryMiB))}
	if err := os.Mkdir(f.dir, 0o711); err != nil {
		return nil, err
	}
	s, err := l.surely(ctx, t.ID)
	if err != nil {
		return nil, err
	}
	pid, err := l.process(s.ID)
	if err == nil {
		f.machine, err = bare.Like(pid)
	}
	if err := errors.Join(err, l.end(ctx, s)); err != nil {
		return nil, err
	}
	bundle, err := kernel.Open(filepath.Join(l.data, "kernels")).Get(t.KernelID)
	if err != nil {
		return nil, err
	}
	m := f.machine
	m.MemoryMiB, m.Kernel, m.Initrd = t.MemoryMiB, bundle.VmlinuzPath(), bundle.InitrdPath()
	m.Append = "console=ttyS0 panic=-1 reboot=t"
	if !slices.Contains(m.Args, "kvm") {
		m.Append += " mitigations=off no_timer_check" // as the engine's own command line has it
	}
	return f, f.unfreeze(ctx, filepath.Join(l.data, "frozen"), t.ID)
}

// unfreeze copies the frozen disk and device state, and notes where the memory is.
func (f *floor) unfreeze(ctx context.Context, store, id string) (err error) {
	states, err := frozen.Open(store, frozen.Options{})
	if err != nil {
		return err
	}
	img, err := states.OpenImage(ctx, id)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, img.Close()) }()
	f.machine.Memory = img.BaseMemory
	f.machine.Disk = filepath.Join(f.dir, "disk")
	if err := img.CloneDisk(ctx, f.machine.Disk); err != nil {
		return err
	}
	f.machine.State = filepath.Join(f.dir, "state")
	// The engine's own record, one line, stands before what the hypervisor wrote.
	state := bufio.NewReader(img.VM.State)
	if head, err := state.ReadString('\n'); err != nil || !strings.HasPrefix(head, "SPOREQEMU") {
		return errors.Join(errors.New("the device state has another form than this benchmark knows"), err)
	}
	out, err := os.Create(f.machine.State)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, state)
	return errors.Join(err, out.Close())
}

// prepared makes the working directory of the next VM.
func (f *floor) prepared(ctx context.Context) (string, error) {
	f.count++
	dir := filepath.Join(f.dir, strconv.Itoa(f.count))
	return dir, f.machine.Prepare(ctx, dir)
}

// thaw thaws a VM, runs the first command in it, calls use and ends it.
func (f *floor) thaw(ctx context.Context, use func(*bare.VM) error) error {
	ctx, cancel := context.WithTimeout(ctx, floorTimeout)
	defer cancel()
	dir, err := f.prepared(ctx)
	if err != nil {
		return err
	}
	vm, err := f.machine.Thaw(ctx, dir)
	if err != nil {
		return err
	}
	if err = vm.Run(ctx, firstCommand); err == nil {
		err = use(vm)
	}
	return errors.Join(err, vm.Stop())
}

// thawTimed measures one bare thaw up to the first command's answer. What is answered is a failure of the floor's own
// doing, which ends the row; a thaw that fails is kept in the series.
func (f *floor) thawTimed(ctx context.Context, series *Series) error {
	return f.timed(ctx, series, f.machine.Thaw)
}

// bootTimed measures one bare boot up to the first command's answer.
func (f *floor) bootTimed(ctx context.Context, series *Series) error {
	return f.timed(ctx, series, f.machine.Boot)
}

// thawTwice is thawTimed that also keeps how long the same command takes the second time, when the hypervisor has
// translated it and the guest has its pages.
func (f *floor) thawTwice(ctx context.Context, series, again *Series) error {
	return f.timed(ctx, series, f.machine.Thaw, func(vm *bare.VM) {
		timed(again, func() error { return vm.Run(ctx, firstCommand) })
	})
}

// timed measures from start to the answer of the first command; then calls are made with the VM that answered.
func (f *floor) timed(ctx context.Context, series *Series, start func(context.Context, string) (*bare.VM, error), then ...func(*bare.VM)) error {
	ctx, cancel := context.WithTimeout(ctx, floorTimeout)
	defer cancel()
	dir, err := f.prepared(ctx)
	if err != nil {
		return err
	}
	var vm *bare.VM
	answered := false
	timed(series, func() error {
		if vm, err = start(ctx, dir); err != nil {
			return err
		}
		err := vm.Run(ctx, firstCommand)
		answered = err == nil
		return err
	})
	if vm == nil {
		return nil
	}
	if answered {
		for _, do := range then {
			do(vm)
		}
	}
	return vm.Stop()
}

// dumpTimed measures one full dump and one migration into a file.
func (f *floor) dumpTimed(ctx context.Context, dump, migration *Series) error {
	return f.thaw(ctx, func(vm *bare.VM) error {
		took, err := vm.Dump(ctx, f.machine.Memory, int64(f.machine.MemoryMiB)<<20)
		if err != nil {
			dump.failed(err)
		} else {
			dump.took(took)
		}
		if took, err = vm.Migrate(ctx); err != nil {
			migration.failed(err)
		} else {
			migration.took(took)
		}
		return nil
	})
}

// memory keeps what an idle bare VM costs.
func (f *floor) memory(ctx context.Context, series *Series) error {
	return f.thaw(ctx, func(vm *bare.VM) error {
		if err := rest(ctx, idleFor); err != nil {
			return err
		}
		kib, err := proportionalKiB(vm.PID())
		if err != nil {
			series.failed(err)
		} else {
			series.add(float64(kib))
		}
		return nil
	})
}

// FloorTimes are what the bare hypervisor needs for a template, in the same form as a row's series.
type FloorTimes struct {
	Thaw, Boot *Series
}

// MeasureFloor measures bare thaws and bare cold boots of a template of the running server at url, whose data directory
// is data. Nothing of it is left.
func MeasureFloor(ctx context.Context, url, data, template string, thaws, boots int) (times FloorTimes, err error) {
	c, err := client.New(url)
	if err != nil {
		return times, err
	}
	defer c.Close()
	dir, err := makeDir("")
	if err != nil {
		return times, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	l := &lab{dir: dir, data: data, client: c}
	t, err := c.GetTemplate(ctx, template)
	if err != nil {
		return times, err
	}
	f, err := l.newFloor(ctx, t)
	if err != nil {
		return times, err
	}
	times = FloorTimes{Thaw: &Series{Unit: milliseconds}, Boot: &Series{Unit: milliseconds}}
	for range thaws {
		if err := f.thawTimed(ctx, times.Thaw); err != nil {
			return times, err
		}
	}
	for range boots {
		if err := f.bootTimed(ctx, times.Boot); err != nil {
			return times, err
		}
	}
	times.Thaw.settle()
	times.Boot.settle()
	return times, nil
}
