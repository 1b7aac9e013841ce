package kernel

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/sporevm/spore"
)

// packageForm is what Debian allows a package to be called. It keeps options out of apt's command line.
var packageForm = regexp.MustCompile(`^[a-z0-9][a-z0-9+.-]{1,127}$`)

// FetchPackage downloads a package, or the kernel package that it is a name for, into dir and returns the path of the
// .deb. It installs nothing. The errors are those of Install.
func FetchPackage(ctx context.Context, name, dir string) (string, error) {
	return fetchPackage(ctx, name, dir, func(string) {})
}

// fetchPackage returns the path of the .deb that name stands for, downloaded into dir unless name is a file.
func fetchPackage(ctx context.Context, name, dir string, report func(string)) (string, error) {
	if strings.Contains(name, "/") || strings.HasSuffix(name, ".deb") {
		info, err := os.Stat(name)
		if err != nil {
			return "", spore.Invalidf("package", "cannot read the package: %w", err)
		}
		if !info.Mode().IsRegular() || info.Size() == 0 {
			return "", spore.Invalidf("package", "%s is not a package: it is empty or no regular file", name)
		}
		return name, nil
	}
	if !packageForm.MatchString(name) {
		return "", spore.Invalidf("package", "%q is not the name of a package", name).
			WithHint("give the name of a kernel package, such as %s, or the path of a .deb file", DefaultPackage)
	}
	for _, tool := range []string{"apt-get", "apt-cache"} {
		if _, err := exec.LookPath(tool); err != nil {
			return "", spore.Errorf(spore.CodeUnsupported, "this host has no %s to download the kernel package with", tool).WithCause(err).
				WithHint("give a .deb with --package FILE, or a kernel with --kernel FILE --modules DIR")
		}
	}
	report("downloading " + name)
	a := apt{dir: dir}
	deb, err := a.download(ctx, name)
	if err == nil || ctx.Err() != nil {
		return deb, err
	}
	// The host's package lists are missing or name a version that is gone. Lists of our own leave the host's alone and
	// need no root.
	report("reading the package lists")
	a.private = true
	updated := a.update(ctx)
	deb, err = a.download(ctx, name)
	if err != nil && updated != nil {
		// One source that does not answer fails the update, which matters only if the package was there.
		err = updated
	}
	return deb, err
}

// apt runs apt's tools in a directory of its own.
type apt struct {
	dir     string
	private bool // use package lists in dir instead of the host's
}

func (a apt) update(ctx context.Context) error {
	for _, sub := range []string{"state/lists/partial", "cache/archives/partial"} {
		if err := os.MkdirAll(filepath.Join(a.dir, sub), 0o755); err != nil {
			return noSpace(err, "making a directory for package lists")
		}
	}
	_, err := a.run(ctx, "apt-get", "-q", "update")
	return err
}

// kernelPackage matches the packages that hold a kernel; others that a name depends on do not matter.
var kernelPackage = regexp.MustCompile(`(?m)^Depends:.*?\b(linux-image-[0-9][a-z0-9+.-]*)`)

func (a apt) download(ctx context.Context, name string) (string, error) {
	record, err := a.run(ctx, "apt-cache", "show", "--no-all-versions", name)
	if err != nil {
		return "", err
	}
	if m := kernelPackage.FindSubmatch(record); m != nil {
		name = string(m[1])
	}
	if _, err := a.run(ctx, "apt-get", "-q", "download", name); err != nil {
		return "", err
	}
	debs, err := filepath.Glob(filepath.Join(a.dir, "*.deb"))
	if err == nil && len(debs) != 1 {
		err = fmt.Errorf("apt left %d packages instead of one", len(debs))
	}
	if err != nil {
		return "", fmt.Errorf("downloading %s: %w", name, err)
	}
	return debs[0], nil
}

func (a apt) run(ctx context.Context, tool string, args ...string) ([]byte, error) {
	// As root apt would give up its rights to a user who may not write into dir, and warn about it.
	options := []string{"-o", "APT::Sandbox::User=root"}
	if a.private {
		options = append(options,
			"-o", "Dir::State::lists="+filepath.Join(a.dir, "state/lists"),
			"-o", "Dir::Cache="+filepath.Join(a.dir, "cache"))
	}
	cmd := exec.CommandContext(ctx, tool, append(options, args...)...)
	cmd.Dir = a.dir
	cmd.Env = append(os.Environ(), "LC_ALL=C", "DEBIAN_FRONTEND=noninteractive")
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if err == nil {
		return out.Bytes(), nil
	}
	said := lastError(errs.String())
	if strings.Contains(said, "No packages found") || strings.Contains(said, "Unable to locate package") {
		return nil, spore.Errorf(spore.CodeNotFound, "the distribution has no package %s", args[len(args)-1]).WithCause(err).
			WithHint("give another name, or a .deb file, with --package")
	}
	return nil, spore.Errorf(spore.CodeUnreachable, "%s failed: %s", tool, said).WithCause(errors.Join(err, errors.New(errs.String()))).
		WithHint("check the network and /etc/apt/sources.list, or give a .deb with --package FILE")
}

// lastError is the last line of apt's messages that tells of an error.
func lastError(text string) string {
	said := ""
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); strings.HasPrefix(line, "E: ") || (line != "" && said == "") {
			said = strings.TrimPrefix(line, "E: ")
		}
	}
	if said == "" {
		return "it said nothing"
	}
	return said
}
