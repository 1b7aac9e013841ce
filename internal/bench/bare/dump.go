package bare

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/sporevm/spore/internal/vmm/procmem"
)

// copyBlock is how much memory is copied at a time.
const copyBlock = 1 << 20

// Dump stops the guest, writes device state and all of its memory into files and lets it run on, as hypervisors without
// another way snapshot. Memory is read straight out of the process, which is the fastest way there is. It answers how long
// the guest stood still.
func (vm *VM) Dump(ctx context.Context, memory string, size int64) (time.Duration, error) {
	ram, err := procmem.Open(vm.PID(), memory, size)
	if err != nil {
		return 0, err
	}
	defer ram.Close()
	files := []string{filepath.Join(vm.dir, "dump.state"), filepath.Join(vm.dir, "dump.memory")}
	return vm.standing(ctx, files, func() error {
		err := vm.monitor.Do(ctx, "xen-save-devices-state", map[string]any{"filename": files[0], "live": false}, nil)
		if err != nil {
			return err
		}
		out, err := os.Create(files[1])
		if err != nil {
			return err
		}
		// Hidden behind a plain writer, so that the copy goes block by block.
		n, err := io.CopyBuffer(struct{ io.Writer }{out}, io.NewSectionReader(ram, 0, size), make([]byte, copyBlock))
		if err == nil && n != size {
			err = fmt.Errorf("%d bytes of memory were read, not %d", n, size)
		}
		return errors.Join(err, out.Close())
	})
}

// Migrate is Dump by QEMU's own migration into a file, which leaves out pages of zeros.
func (vm *VM) Migrate(ctx context.Context) (time.Duration, error) {
	file := filepath.Join(vm.dir, "dump.migration")
	out, err := os.Create(file)
	if err != nil {
		return 0, err
	}
	defer out.Close()
	unbound := map[string]any{"max-bandwidth": int64(1) << 50}
	if err := vm.monitor.Do(ctx, "migrate-set-parameters", unbound, nil); err != nil {
		return 0, err
	}
	return vm.standing(ctx, []string{file}, func() error {
		call, err := vm.monitor.Send("getfd", map[string]string{"fdname": "dump"}, out)
		if err != nil {
			return err
		}
		if err := call.Wait(ctx, nil); err != nil {
			return err
		}
		if err := vm.monitor.Do(ctx, "migrate", map[string]string{"uri": "fd:dump"}, nil); err != nil {
			return err
		}
		return vm.migrated(ctx)
	})
}

// standing stops the guest around do and answers how long it stood. The files that do makes must have content, and are
// removed afterwards.
func (vm *VM) standing(ctx context.Context, files []string, do func() error) (took time.Duration, err error) {
	start := time.Now()
	if err := vm.monitor.Do(ctx, "stop", nil, nil); err != nil {
		return 0, err
	}
	if err := do(); err != nil {
		return 0, err
	}
	if err := vm.monitor.Do(ctx, "cont", nil, nil); err != nil {
		return 0, err
	}
	took = time.Since(start)
	for _, f := range files {
		fi, statErr := os.Stat(f)
		if statErr == nil && fi.Size() == 0 {
			statErr = fmt.Errorf("%s is empty", f)
		}
		err = errors.Join(err, statErr, os.Remove(f))
	}
	return took, err
}
