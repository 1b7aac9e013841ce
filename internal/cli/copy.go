package cli

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/client"
)

func (a *app) sandboxCopy() *cobra.Command {
	var user string
	cmd := &cobra.Command{
		Use:   "cp SOURCE DESTINATION",
		Short: "Copy files into a sandbox or out of it",
		Long: `Copy a file, or a directory with all it holds, into a sandbox or out of it. The side in the sandbox is written
SANDBOX:PATH; a local name with a colon is written with a slash, such as ./a:b. A destination that is a directory gets the
source under its own name.

Nothing is left half made: a file appears when it has arrived whole, and a directory is gathered aside first. Permissions
are kept, owners are not. Devices, sockets and pipes are left out, and named.`,
		Example:           "  spore sandbox cp ./site s0a1b2c3d4e5f60718293:/srv\n  spore sandbox cp s0a1b2c3d4e5f60718293:/var/log/app.log .",
		Args:              exactly(2),
		ValidArgsFunction: a.complete(nil),
		RunE: a.with(func(cmd *cobra.Command, c *client.Client, args []string) error {
			from, fromIn := target(args[0])
			to, toIn := target(args[1])
			switch {
			case fromIn == "" && toIn == "":
				return usage(cmd, errors.New("neither side is in a sandbox; write SANDBOX:PATH"))
			case fromIn != "" && toIn != "":
				return usage(cmd, errors.New("one side must be local"))
			}
			cp := &copier{app: a, sandbox: c.Sandbox(fromIn + toIn), bar: a.newProgress(), user: user}
			cp.files = cp.sandbox.As(user)
			defer cp.bar.finish()
			if toIn != "" {
				return cp.upload(cmd.Context(), from, to)
			}
			return cp.download(cmd.Context(), from, to)
		}),
	}
	cmd.Flags().StringVarP(&user, "user", "u", "", "user in the sandbox instead of the image's own")
	return cmd
}

// target takes SANDBOX:PATH apart; sandbox is "" for a local path.
func target(arg string) (file, sandbox string) {
	before, after, ok := strings.Cut(arg, ":")
	if !ok || before == "" || strings.ContainsAny(before, "/.") {
		return arg, ""
	}
	return after, before
}

// copier copies between the local machine and one sandbox.
type copier struct {
	app     *app
	sandbox *client.Sandbox
	files   *client.Files
	user    string
	bar     *progress
	total   int64 // bytes to copy
	done    int64
	name    string // what is being copied
	left    []string
}

// Read counts for the progress bar.
func (c *copier) count(r io.Reader) io.Reader { return &counter{r: r, copier: c} }

type counter struct {
	r      io.Reader
	copier *copier
}

func (r *counter) Read(p []byte) (int, error) {
	n, err := r.r.Read(p)
	c := r.copier
	c.done += int64(n)
	if n > 0 && (c.total >= 1<<20 || c.bar.bar != nil) {
		c.bar.set(c.name, c.done, max(c.total, c.done), size(c.done)+" of "+size(max(c.total, c.done)))
	}
	return n, err
}

// leaveOut notes what cannot be copied.
func (c *copier) leaveOut(file, why string) { c.left = append(c.left, file+": "+why) }

// leftOut is an error that names what was not copied.
func (c *copier) leftOut() error {
	if len(c.left) == 0 {
		return nil
	}
	const most = 20
	shown := c.left[:min(len(c.left), most)]
	if more := len(c.left) - most; more > 0 {
		shown = append(shown[:most:most], fmt.Sprintf("and %d more", more))
	}
	return spore.Errorf(spore.CodeUnsupported, "not everything could be copied:\n  %s", strings.Join(shown, "\n  "))
}

// aside is a name beside file for what is not complete yet.
func aside(file string) string {
	b := make([]byte, 8)
	rand.Read(b)
	return path.Join(path.Dir(file), ".spore-copy-"+hex.EncodeToString(b))
}

// download copies from the sandbox. What the sandbox says its files are called is not believed: everything is written
// below the destination, through an os.Root that leads nowhere else.
func (c *copier) download(ctx context.Context, from, to string) error {
	if from == "" {
		from = "."
	}
	info, err := c.files.Stat(ctx, from)
	if err != nil {
		return err
	}
	if local, err := os.Stat(to); err == nil && local.IsDir() {
		name := path.Base(info.Path)
		if name == "/" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00") {
			name = c.sandbox.ID()
		}
		to = filepath.Join(to, name)
	} else if strings.HasSuffix(to, "/") {
		return spore.Invalidf("destination", "there is no directory %s", to)
	}
	if local, err := os.Stat(to); err == nil && local.IsDir() != info.IsDir() {
		return spore.Errorf(spore.CodeConflict, "%s exists and is not of the same kind as %s", to, info.Path)
	}
	c.name = path.Base(info.Path)
	temp := aside(filepath.ToSlash(to))
	defer os.RemoveAll(temp)
	if !info.IsDir() {
		c.total = info.Size
		if err := c.downloadFile(ctx, info, func(flag int, mode os.FileMode) (*os.File, error) { return os.OpenFile(temp, flag, mode) }); err != nil {
			return err
		}
		return errors.Join(os.Rename(temp, to), c.leftOut())
	}
	if err := os.Mkdir(temp, 0o700); err != nil {
		return err
	}
	root, err := os.OpenRoot(temp)
	if err != nil {
		return err
	}
	defer root.Close()
	if err := c.downloadTree(ctx, root, info); err != nil {
		return err
	}
	return errors.Join(mergeTree(temp, to), c.leftOut())
}

// downloadFile copies one file into a new local one.
func (c *copier) downloadFile(ctx context.Context, info client.FileInfo, create func(int, os.FileMode) (*os.File, error)) error {
	if !info.Mode.IsRegular() {
		return spore.Errorf(spore.CodeUnsupported, "%s is not a regular file", info.Path)
	}
	r, err := c.files.Open(ctx, info.Path)
	if err != nil {
		return err
	}
	defer r.Close()
	f, err := create(os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, c.count(r))
	return errors.Join(err, f.Chmod(info.Mode.Perm()), f.Close())
}

// downloadTree copies what a directory holds. It asks for one directory at a time, so that a large tree fits.
func (c *copier) downloadTree(ctx context.Context, root *os.Root, top client.FileInfo) error {
	type dir struct {
		remote, local string
		mode          os.FileMode
	}
	dirs := []dir{{top.Path, ".", top.Mode.Perm()}}
	for i := 0; i < len(dirs); i++ {
		entries, err := c.files.List(ctx, dirs[i].remote, 1)
		if err != nil {
			return err
		}
		for _, e := range entries {
			if e.Name == "" || e.Name == "." || e.Name == ".." || strings.ContainsAny(e.Name, "/\x00") {
				return spore.Errorf(spore.CodeInvalid, "the sandbox has a file called %q in %s", e.Name, dirs[i].remote)
			}
			local := filepath.Join(dirs[i].local, e.Name)
			e.Path = path.Join(dirs[i].remote, e.Name)
			c.name = e.Name
			switch {
			case e.SymlinkTarget != "":
				err = root.Symlink(relative(top.Path, e.Path, e.SymlinkTarget), local)
			case e.IsDir():
				dirs = append(dirs, dir{e.Path, local, e.Mode.Perm()})
				err = root.Mkdir(local, 0o700)
			case e.Mode.IsRegular():
				c.total += e.Size
				err = c.downloadFile(ctx, e, func(flag int, mode os.FileMode) (*os.File, error) { return root.OpenFile(local, flag, mode) })
				if spore.CodeOf(err) == spore.CodeNotFound && ctx.Err() == nil {
					err = nil // removed meanwhile
				}
			default:
				c.leaveOut(e.Path, "a device, socket or pipe")
			}
			if err != nil {
				return err
			}
		}
	}
	// Last, because a directory that may not be written to could not be filled.
	for i := len(dirs) - 1; i >= 0; i-- {
		if err := root.Chmod(dirs[i].local, dirs[i].mode); err != nil {
			return err
		}
	}
	return nil
}

// relative is what a link at file says, so that a link within the copied tree still leads within the copy. The agent
// answers where a link leads from the root on.
func relative(top, file, target string) string {
	if target != top && !strings.HasPrefix(target, strings.TrimSuffix(top, "/")+"/") {
		return target
	}
	rel, err := filepath.Rel(path.Dir(file), target)
	if err != nil {
		return target
	}
	return rel
}

// mergeTree moves what was gathered in from to its place. When to exists its files are replaced one by one, and what is
// only there stays.
func mergeTree(from, to string) error {
	info, err := os.Lstat(to)
	if errors.Is(err, os.ErrNotExist) {
		return os.Rename(from, to)
	}
	if err != nil {
		return err
	}
	if !info.IsDir() {
		return spore.Errorf(spore.CodeConflict, "%s exists and is not a directory", to)
	}
	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	for _, e := range entries {
		source, place := filepath.Join(from, e.Name()), filepath.Join(to, e.Name())
		if e.IsDir() {
			err = mergeTree(source, place)
		} else {
			err = os.Rename(source, place)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
