package node

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"syscall"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/vmm"
)

// privateBytes is at most how much a VM holds of its memory for itself, and so keeps when it is frozen. For the process
// of a hypervisor it is what the kernel counts as its own, at once; any other VM is asked for its pages.
func privateBytes(ctx context.Context, vm vmm.VM, size int64) (int64, error) {
	if pid := vm.PID(); pid > 0 {
		own, err := ownMemory(pid)
		if errors.Is(err, fs.ErrNotExist) {
			return 0, spore.Errorf(spore.CodeConflict, "the VM has ended").WithCause(err)
		}
		return min(own, size), err
	}
	memory, err := vm.Memory()
	if err != nil {
		return 0, err
	}
	pages, err := memory.Private(ctx)
	if spore.CodeOf(err) == spore.CodeUnsupported {
		return size, nil
	}
	var sum int64
	for _, r := range pages {
		sum += r.Length
	}
	return sum, err
}

// ownMemory is the anonymous memory of a process, in the machine's memory and swapped out.
func ownMemory(pid int) (int64, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	var sum int64
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		for _, name := range []string{"RssAnon:", "VmSwap:"} {
			if rest, ok := strings.CutPrefix(lines.Text(), name); ok {
				var kib int64
				if _, err := fmt.Sscan(rest, &kib); err != nil {
					return 0, fmt.Errorf("%s of process %d: %w", name, pid, err)
				}
				sum += kib << 10
			}
		}
	}
	return sum, lines.Err()
}

// allocatedBytes is what a file takes up on the disk; nothing when it is gone.
func allocatedBytes(path string) (int64, error) {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	return info.Sys().(*syscall.Stat_t).Blocks * 512, nil
}
