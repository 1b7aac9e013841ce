package firecracker

import (
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	spore "github.com/sporevm/spore"
)

// Binary is one installed Firecracker.
type Binary struct {
	Firecracker string // absolute path
	Jailer      string // absolute path of the jailer beside it; "" when there is none
	Version     Version
	Snapshot    Version // the format of the snapshots that it writes
	Features    Features

	size, mtime int64
}

// probeTime bounds how long a binary may take to say its version.
const probeTime = 20 * time.Second

const installHint = "put the firecracker and jailer of a release, 1.10 or newer, into a directory of their own under engines/firecracker in the data directory, or name them"

// candidates lists the paths of all binaries that are installed: the ones named, those in the directory, and, when
// there are none of either, the one that PATH has. Each comes with its jailer.
func (o Options) candidates() ([][2]string, error) {
	var found [][2]string
	add := func(firecracker, jailer string) {
		if jailer == "" {
			if beside := filepath.Join(filepath.Dir(firecracker), "jailer"); isProgram(beside) {
				jailer = beside
			}
		}
		found = append(found, [2]string{firecracker, jailer})
	}
	for _, path := range o.Binaries {
		abs, err := exec.LookPath(path)
		if err == nil {
			abs, err = filepath.Abs(abs)
		}
		if err != nil {
			return nil, spore.Errorf(spore.CodeUnsupported, "there is no Firecracker at %s", path).WithCause(err).WithHint("%s", installHint)
		}
		add(abs, o.Jailer)
	}
	if o.Dir != "" {
		entries, err := os.ReadDir(o.Dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("firecracker: %w", err)
		}
		for _, e := range entries {
			path, err := filepath.Abs(filepath.Join(o.Dir, e.Name(), "firecracker"))
			if err != nil {
				return nil, fmt.Errorf("firecracker: %w", err)
			}
			if isProgram(path) {
				add(path, "")
			}
		}
	}
	if len(found) == 0 {
		path, err := exec.LookPath("firecracker")
		if err == nil {
			path, err = filepath.Abs(path)
		}
		if err != nil {
			return nil, spore.Errorf(spore.CodeUnsupported, "Firecracker is not installed").WithCause(err).WithHint("%s", installHint)
		}
		jailer := o.Jailer
		if jailer == "" {
			if j, err := exec.LookPath("jailer"); err == nil {
				jailer = j
			}
		}
		add(path, jailer)
	}
	return found, nil
}

func isProgram(path string) bool {
	fi, err := os.Stat(path)
	return err == nil && fi.Mode().IsRegular() && fi.Mode()&0o111 != 0
}

// probeBinary asks a binary what it is. It fails with spore.CodeUnsupported when it cannot be used.
func probeBinary(ctx context.Context, path, jailer string) (*Binary, error) {
	unusable := func(err error, format string, args ...any) error {
		e := spore.Errorf(spore.CodeUnsupported, format, args...).WithHint("%s", installHint)
		if err != nil {
			e = e.WithCause(err)
		}
		return e
	}
	fi, err := os.Stat(path)
	if err != nil {
		return nil, unusable(err, "there is no Firecracker at %s", path)
	}
	if err := checkMachine(path); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, probeTime)
	defer cancel()
	ask := func(flag string) (Version, error) {
		cmd := exec.CommandContext(ctx, path, flag)
		cmd.Env = []string{"LC_ALL=C"}
		out, err := cmd.Output()
		if err != nil {
			if ctx.Err() != nil {
				return Version{}, fmt.Errorf("firecracker: %s %s: %w", path, flag, ctx.Err())
			}
			return Version{}, unusable(err, "%s does not run", path)
		}
		v, err := ParseVersion(out)
		if err != nil {
			return Version{}, unusable(err, "%s does not tell its version", path)
		}
		return v, nil
	}
	b := &Binary{Firecracker: path, Jailer: jailer, size: fi.Size(), mtime: fi.ModTime().UnixNano()}
	if b.Version, err = ask("--version"); err != nil {
		return nil, err
	}
	if !b.Version.AtLeast(oldest.Major, oldest.Minor) {
		return nil, unusable(nil, "%s is version %s; %d.%d is the oldest that works", path, b.Version, oldest.Major, oldest.Minor)
	}
	if b.Version.Major > newest.Major {
		return nil, unusable(nil, "%s is version %s; %d.%d is the newest that is known to work", path, b.Version, newest.Major, newest.Minor)
	}
	if b.Snapshot, err = ask("--snapshot-version"); err != nil {
		return nil, err
	}
	b.Features = FeaturesOf(b.Version)
	return b, nil
}

// checkMachine refuses a program for another processor: what the system says of one explains nothing. A script is let
// through, since whatever it runs will tell.
func checkMachine(path string) error {
	f, err := elf.Open(path)
	if err != nil {
		return nil
	}
	defer f.Close()
	want := map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64}[runtime.GOARCH]
	if f.Machine != want {
		return spore.Errorf(spore.CodeUnsupported, "%s is a program for %s and this host is %s", path,
			strings.ToLower(strings.TrimPrefix(f.Machine.String(), "EM_")), runtime.GOARCH).
			WithHint("install the release of Firecracker for this host's processor")
	}
	return nil
}

// binaries finds what is installed, newest first. What it learned of a file holds until the file changes. The caller
// holds e.mu.
func (e *Engine) binaries(ctx context.Context) ([]*Binary, error) {
	candidates, err := e.opts.candidates()
	if err != nil {
		return nil, err
	}
	var all []*Binary
	var failed error
	known := map[string]*Binary{}
	for _, c := range candidates {
		if known[c[0]] != nil {
			continue
		}
		b := e.known[c[0]]
		if fi, err := os.Stat(c[0]); b == nil || err != nil || fi.Size() != b.size || fi.ModTime().UnixNano() != b.mtime {
			if b, err = probeBinary(ctx, c[0], c[1]); err != nil {
				if spore.CodeOf(err) != spore.CodeUnsupported {
					return nil, err
				}
				// One that does not work does not keep the others from working.
				e.log.Warn("a Firecracker cannot be used", "path", c[0], "error", err)
				failed = errors.Join(failed, err)
				continue
			}
		}
		known[c[0]] = b
		all = append(all, b)
	}
	e.known = known
	if len(all) == 0 {
		return nil, failed
	}
	slices.SortStableFunc(all, func(a, b *Binary) int { return b.Version.compare(a.Version) })
	return all, nil
}

// reader picks the newest binary that reads snapshots of a format. writer is the version that wrote one, for people; it may be empty.
func reader(all []*Binary, format Version, writer string) (*Binary, error) {
	if at := slices.IndexFunc(all, func(b *Binary) bool { return b.Snapshot.reads(format) }); at >= 0 {
		return all[at], nil
	}
	bound := spore.Components{Engine: "firecracker", EngineVersion: writer, StateFormat: stateFormat(format, processor{})}
	var there []spore.Components
	for _, b := range all {
		there = append(there, spore.Components{Engine: "firecracker", EngineVersion: b.Version.String(), StateFormat: stateFormat(b.Snapshot, processor{})})
	}
	gap := spore.EngineGap(bound, there[0], there[1:])
	e := spore.Errorf(spore.CodeStale, "the device state cannot be loaded: %s", gap.Why)
	if gap.Cure == "" {
		return nil, e.WithHint("install a Firecracker that reads format %s beside what is there, or make the template anew", format)
	}
	return nil, e.WithHint("install %s beside what is there, or make the template anew", gap.Cure)
}
