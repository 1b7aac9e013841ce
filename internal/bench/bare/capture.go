package bare

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
)

// Like answers the machine that a running QEMU of Spore's is, with the walls around it taken down: its arguments and the
// links in its working directory. What it is thawed from, and a kernel to boot, are for the caller to fill in.
func Like(pid int) (*Machine, error) {
	proc := filepath.Join("/proc", strconv.Itoa(pid))
	raw, err := os.ReadFile(filepath.Join(proc, "cmdline"))
	if err != nil {
		return nil, err
	}
	m := &Machine{Links: map[string]string{}}
	if m.Hypervisor, err = os.Readlink(filepath.Join(proc, "exe")); err != nil {
		return nil, err
	}
	argv := strings.Split(string(bytes.TrimSuffix(raw, []byte{0})), "\x00")
	if m.Args, err = plain(argv[1:]); err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(filepath.Join(proc, "cwd") + "/")
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if e.Type()&os.ModeSymlink == 0 || e.Name() == memoryLink || e.Name() == diskLink {
			continue
		}
		if m.Links[e.Name()], err = os.Readlink(filepath.Join(proc, "cwd", e.Name())); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// dropped are options that wall QEMU in or say what it starts from, each with one value.
var dropped = map[string]bool{"-sandbox": true, "-run-with": true, "-chroot": true, "-runas": true, "-user": true, "-incoming": true, "-readconfig": true, "-name": true}

// plain takes down the walls, and replaces sockets that were handed over by ones that QEMU makes by itself.
func plain(args []string) ([]string, error) {
	var kept []string
	for i := 0; i < len(args); i++ {
		if dropped[args[i]] {
			i++
			continue
		}
		next := ""
		if i+1 < len(args) {
			next = args[i+1]
		}
		switch {
		case args[i] == "-object" && strings.HasPrefix(next, "memory-backend-file,"):
			i++
		case args[i] == "-chardev" && strings.Contains(next, ",fd="):
			id, ok := option(next, "id")
			if !ok {
				return nil, fmt.Errorf("the character device %q has no id", next)
			}
			kept = append(kept, "-chardev", "socket,id="+id+",path="+id+".sock,server=on,wait=off")
			i++
		default:
			kept = append(kept, args[i])
		}
	}
	return kept, nil
}

// option reads one key of QEMU's key=value lists.
func option(list, key string) (string, bool) {
	for part := range strings.SplitSeq(list, ",") {
		if value, ok := strings.CutPrefix(part, key+"="); ok {
			return value, true
		}
	}
	return "", false
}

// copySparse copies a file without its holes, sharing blocks where the file system can.
func copySparse(ctx context.Context, from, to string) error {
	out, err := exec.CommandContext(ctx, "cp", "--reflink=auto", "--sparse=always", from, to).CombinedOutput()
	if err != nil {
		return fmt.Errorf("copying the disk: %w: %s", err, out)
	}
	return nil
}
