package bench

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/sporevm/spore/api"
)

// idleFor is how long a guest has been idle when its memory is counted.
const idleFor = 5 * time.Second

// measureMemory compares what an idle sandbox costs in memory with what the bare hypervisor does.
func measureMemory(ctx context.Context, l *lab) ([]*Row, error) {
	t, floor, err := l.prepare(ctx, smallGuest)
	if err != nil {
		return nil, err
	}
	row := &Row{
		Name: "memory", What: "memory of an idle sandbox (PSS)", Goal: "at most 1.1 x the bare VM's", Limit: 1.1, Unit: "x",
		Note: fmt.Sprintf("of the hypervisor's process, %s after its first command, one at a time, so that it shares its template's pages with nobody", idleFor),
	}
	ours, bare := row.series("spore sandbox", kibibytes), row.series("bare VM", kibibytes)
	for range l.repeat(7, 2) {
		if kib, err := l.memoryOnce(ctx, t); err != nil {
			ours.failed(err)
		} else {
			ours.add(float64(kib))
		}
		if err := floor.memory(ctx, bare); err != nil {
			return nil, err
		}
	}
	row.judge(false, func() float64 { return ours.P50 / bare.P50 })
	return []*Row{row}, nil
}

func (l *lab) memoryOnce(ctx context.Context, t *api.Template) (kib int64, err error) {
	s, err := l.create(ctx, t.ID)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, l.end(ctx, s)) }()
	if err := rest(ctx, idleFor); err != nil {
		return 0, err
	}
	pid, err := l.process(s.ID)
	if err != nil {
		return 0, err
	}
	return proportionalKiB(pid)
}

// proportionalKiB is the proportional set size of a process.
func proportionalKiB(pid int) (int64, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if rest, ok := strings.CutPrefix(lines.Text(), "Pss:"); ok {
			return kibOf(rest)
		}
	}
	return 0, errors.Join(fmt.Errorf("%s has no Pss", f.Name()), lines.Err())
}

// dirtyBytes is how much of its guest's RAM a hypervisor holds apart from the file that it maps: pages written since the
// thaw. RAM is the largest file that the process maps.
func dirtyBytes(pid int) (int64, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/smaps", pid))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	return dirtyIn(bufio.NewScanner(f))
}

func dirtyIn(lines *bufio.Scanner) (int64, error) {
	size, anonymous := map[string]int64{}, map[string]int64{}
	inode := ""
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) >= 5 && strings.Contains(fields[0], "-") { // address perms offset dev inode [path]
			inode = fields[3] + " " + fields[4]
			continue
		}
		if len(fields) != 3 || fields[2] != "kB" {
			continue
		}
		into := map[string]map[string]int64{"Size:": size, "Anonymous:": anonymous, "Swap:": anonymous}[fields[0]]
		if into == nil || strings.HasSuffix(inode, " 0") {
			continue
		}
		kib, err := strconv.ParseInt(fields[1], 10, 64)
		if err != nil {
			return 0, err
		}
		into[inode] += kib
	}
	if err := lines.Err(); err != nil {
		return 0, err
	}
	ram := ""
	for inode := range size {
		if size[inode] > size[ram] {
			ram = inode
		}
	}
	if ram == "" {
		return 0, errors.New("the process maps no file")
	}
	return anonymous[ram] << 10, nil
}

func kibOf(text string) (int64, error) {
	return strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(text), "kB")), 10, 64)
}

// process answers the hypervisor's process of a sandbox: the one whose working directory, or one of whose arguments, is
// the VM's own directory.
func (l *lab) process(sandbox string) (int, error) {
	dir, err := l.machine(sandbox)
	if err != nil {
		return 0, err
	}
	return processOf(dir)
}

func processOf(dir string) (int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return 0, err
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		// A process that ends meanwhile cannot be looked at, and is not the one.
		exe, err := os.Readlink(filepath.Join("/proc", e.Name(), "exe"))
		if err != nil || !strings.HasPrefix(filepath.Base(exe), "qemu") {
			continue
		}
		cwd, err := os.Readlink(filepath.Join("/proc", e.Name(), "cwd"))
		if err != nil {
			continue
		}
		line, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if err != nil {
			continue
		}
		if cwd == dir || strings.Contains(string(line), filepath.Base(dir)) {
			return pid, nil
		}
	}
	return 0, fmt.Errorf("no hypervisor runs for %s", dir)
}

func readJSON(path string, v any) error {
	raw, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return json.Unmarshal(raw, v)
}
