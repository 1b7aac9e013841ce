package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/client"
)

// Modes that uploaded files and directories have when nobody changes them.
const (
	uploadedFile fs.FileMode = 0o644
	uploadedDir  fs.FileMode = 0o755
)

// upload copies into the sandbox.
func (c *copier) upload(ctx context.Context, from, to string) error {
	info, err := os.Stat(from)
	if err != nil {
		return spore.Invalidf("source", "%v", err)
	}
	if to == "" {
		to = "."
	}
	there, err := c.files.Stat(ctx, to)
	exists := err == nil
	if err != nil && spore.CodeOf(err) != spore.CodeNotFound {
		return err
	}
	if exists && there.IsDir() || strings.HasSuffix(to, "/") {
		abs, err := filepath.Abs(from)
		if err != nil {
			return err
		}
		to = path.Join(to, filepath.Base(abs))
		there, err = c.files.Stat(ctx, to)
		if exists = err == nil; err != nil && spore.CodeOf(err) != spore.CodeNotFound {
			return err
		}
	}
	if exists && there.IsDir() != info.IsDir() {
		return spore.Errorf(spore.CodeConflict, "%s exists in the sandbox and is not of the same kind as %s", to, from)
	}
	c.name = filepath.Base(from)
	if !info.IsDir() {
		if err := c.uploadFile(ctx, from, to); err != nil {
			return err
		}
		if exists || info.Mode().Perm() == uploadedFile {
			return nil
		}
		return c.chmod(ctx, map[fs.FileMode][]string{info.Mode().Perm(): {to}})
	}
	return c.uploadDir(ctx, from, to, exists)
}

func (c *copier) uploadFile(ctx context.Context, from, to string) error {
	f, err := os.Open(from)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return spore.Invalidf("source", "%s is not a regular file", from)
	}
	if c.total == 0 {
		c.total = info.Size()
	}
	return c.files.Write(ctx, to, c.count(f))
}

// tree is a local directory, listed.
type tree struct {
	dirs, files []string          // relative, parents first
	links       map[string]string // what links say
	modes       map[fs.FileMode][]string
}

func (c *copier) scan(top string) (*tree, error) {
	t := &tree{links: map[string]string{}, modes: map[fs.FileMode][]string{}}
	err := filepath.WalkDir(top, func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(top, file)
		if err != nil {
			return err
		}
		rel = filepath.ToSlash(rel)
		info, err := d.Info()
		if err != nil {
			return err
		}
		usual := uploadedFile
		switch {
		case d.IsDir():
			usual = uploadedDir
			t.dirs = append(t.dirs, rel)
		case d.Type().IsRegular():
			t.files = append(t.files, rel)
			c.total += info.Size()
		case d.Type()&fs.ModeSymlink != 0:
			if t.links[rel], err = os.Readlink(file); err != nil {
				return err
			}
			return nil
		default:
			c.leaveOut(file, "a device, socket or pipe")
			return nil
		}
		if mode := info.Mode().Perm(); mode != usual {
			t.modes[mode] = append(t.modes[mode], rel)
		}
		return nil
	})
	return t, err
}

// uploadDir gathers a directory aside and then moves it to its place: as a whole when nothing is there yet, else file by
// file.
func (c *copier) uploadDir(ctx context.Context, from, to string, exists bool) (err error) {
	t, err := c.scan(from)
	if err != nil {
		return err
	}
	temp := aside(to)
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
		defer cancel()
		if rmErr := c.files.Remove(ctx, temp); rmErr != nil {
			err = errors.Join(err, fmt.Errorf("%s is left behind in the sandbox: %w", temp, rmErr))
		}
	}()
	for _, dir := range t.dirs {
		if err := c.files.Mkdir(ctx, path.Join(temp, dir)); err != nil {
			return err
		}
	}
	for _, file := range t.files {
		c.name = path.Base(file)
		if err := c.uploadFile(ctx, filepath.Join(from, filepath.FromSlash(file)), path.Join(temp, file)); err != nil {
			return err
		}
	}
	for _, link := range sortedKeys(t.links) {
		if err := c.run(ctx, "ln", "-s", "--", t.links[link], path.Join(temp, link)); err != nil {
			c.leaveOut(link, "the link cannot be made: "+err.Error())
		}
	}
	modes := map[fs.FileMode][]string{}
	for mode, files := range t.modes {
		for _, file := range files {
			modes[mode] = append(modes[mode], path.Join(temp, file))
		}
	}
	if err := c.chmod(ctx, modes); err != nil {
		c.leaveOut(from, err.Error())
	}
	if !exists {
		return errors.Join(c.files.Rename(ctx, temp, to), c.leftOut())
	}
	for _, dir := range t.dirs {
		if err := c.files.Mkdir(ctx, path.Join(to, dir)); err != nil && spore.CodeOf(err) != spore.CodeConflict {
			return err
		}
	}
	for _, file := range append(t.files, sortedKeys(t.links)...) {
		if err := c.files.Rename(ctx, path.Join(temp, file), path.Join(to, file)); err != nil && !c.wasLeftOut(file) {
			return err
		}
	}
	return c.leftOut()
}

func (c *copier) wasLeftOut(file string) bool {
	for _, l := range c.left {
		if strings.HasPrefix(l, file+": ") {
			return true
		}
	}
	return false
}

// chmodBatch is how many names one command line takes.
const chmodBatch = 500

// chmod sets modes, with the sandbox's own chmod: the agent's file service has no way to.
func (c *copier) chmod(ctx context.Context, modes map[fs.FileMode][]string) error {
	for mode, files := range modes {
		for len(files) > 0 {
			n := min(len(files), chmodBatch)
			args := append([]string{strconv.FormatUint(uint64(mode), 8), "--"}, files[:n]...)
			if err := c.run(ctx, "chmod", args...); err != nil {
				return spore.Errorf(spore.CodeUnsupported, "permissions could not be set: %v", err).WithCause(err)
			}
			files = files[n:]
		}
	}
	return nil
}

func (c *copier) run(ctx context.Context, name string, args ...string) error {
	cmd := c.sandbox.Command(ctx, name, args...)
	cmd.User = c.user
	_, err := cmd.Output()
	var exit *client.ExitError
	if errors.As(err, &exit) && len(exit.Stderr) > 0 {
		return errors.New(strings.TrimSpace(string(exit.Stderr)))
	}
	return err
}
