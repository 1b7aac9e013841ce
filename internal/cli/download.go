package cli

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/api"
	"github.com/sporevm/spore/client"
)

func (a *app) artifactDownload() *cobra.Command {
	var file string
	var force bool
	cmd := &cobra.Command{
		Use:   "download ARTIFACT",
		Short: "Fetch an artifact into a file",
		Long: `Fetch an artifact, an ext4 filesystem, into a file. What has come so far is kept beside it, under a name that ends in
.part; the same command goes on from there, and looks through all of it: the file appears under its own name only when its
digest is right. A file that is there already is left alone unless --force is given.`,
		Example:           "  spore artifact download rfs-0123456789abcdef01234567 -O rootfs.ext4",
		Args:              exactly(1),
		ValidArgsFunction: a.complete(artifacts, nothing),
		RunE: a.with(func(cmd *cobra.Command, c *client.Client, args []string) error {
			f, err := c.GetArtifact(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if f.Status != spore.ArtifactReady {
				return spore.Errorf(spore.CodeConflict, "artifact %s is %s and cannot be read", f.ID, f.Status).WithHint("spore artifact info %s", f.ID)
			}
			if file == "" {
				file = f.ID + ".ext4"
			}
			d := &download{c: c, artifact: *f, to: file, force: force, bar: a.newProgress()}
			defer d.bar.finish()
			if err := d.run(cmd.Context()); err != nil {
				return err
			}
			d.bar.finish()
			if a.output == "json" && !a.quiet {
				return a.json(map[string]any{"id": f.ID, "file": file, "sizeBytes": f.SizeBytes, "digest": f.Digest})
			}
			_, err = fmt.Fprintln(a.Stdout, printable(file, false))
			return err
		}),
	}
	cmd.Flags().StringVarP(&file, "output-file", "O", "", "where to (default ARTIFACT.ext4)")
	cmd.Flags().BoolVar(&force, "force", false, "overwrite a file that is there")
	cmd.MarkFlagFilename("output-file")
	return cmd
}

// download fetches one artifact into a file.
type download struct {
	c        *client.Client
	artifact api.Artifact
	to       string
	force    bool
	bar      *progress
	part     *os.File
	have     int64 // bytes in part
}

func (d *download) run(ctx context.Context) (err error) {
	if err := d.free(); err != nil {
		return err
	}
	if err := d.openPart(); err != nil {
		return err
	}
	defer func() {
		if closeErr := d.part.Close(); err == nil {
			err = closeErr
		}
	}()
	err = d.c.DownloadArtifact(ctx, d.artifact.ID, d.part, d.show())
	switch {
	case err == nil:
		return d.admit()
	case spore.CodeOf(err) == spore.CodeDamaged: // nothing of it is worth to be kept
		return errors.Join(err, os.Remove(d.part.Name()))
	}
	return d.unfinished(err)
}

// show answers what shows the progress.
func (d *download) show() func(done, total int64) {
	began, first := time.Now(), int64(-1)
	return func(done, total int64) {
		if d.have = done; first < 0 {
			first = done
		}
		detail := size(done) + " of " + size(total)
		if passed := time.Since(began).Seconds(); passed >= 1 {
			detail += ", " + size(int64(float64(done-first)/passed)) + "/s"
		}
		if total >= 1<<20 || d.bar.bar != nil {
			d.bar.set("downloading", done, total, detail)
		}
	}
}

// unfinished tells that the same command goes on from here.
func (d *download) unfinished(err error) error {
	e := *spore.AsError(err)
	switch {
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		e = *spore.Errorf(spore.CodeNoSpace, "%s are missing where %s is to be", size(d.artifact.SizeBytes-d.have), d.to)
	case e.Code == spore.CodeInternal && e.Cause == err: // it is from this machine
		e.Message, e.Hint = err.Error(), ""
	}
	if d.have > 0 && (e.Hint == "" || e.Code == spore.CodeUnreachable) {
		e.Hint = fmt.Sprintf("%s of %s are in %s; the same command goes on from there", size(d.have), size(d.artifact.SizeBytes), d.part.Name())
	}
	return &e
}

// free refuses to overwrite a file.
func (d *download) free() error {
	info, err := os.Lstat(d.to)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.IsDir():
		return spore.Invalidf("output-file", "%s is a directory", d.to).WithHint("name a file in it")
	case !d.force:
		return d.taken()
	}
	return nil
}

func (d *download) taken() error {
	return spore.Errorf(spore.CodeConflict, "%s is there already", d.to).WithHint("overwrite it with --force, or choose another name with -O")
}

// openPart opens the file that gathers the bytes. Its name says which bytes, so that those of another artifact are never
// taken for a beginning of these. One download at a time has it.
func (d *download) openPart() error {
	hexDigest, isSHA256 := strings.CutPrefix(d.artifact.Digest, "sha256:")
	raw, err := hex.DecodeString(hexDigest)
	if err != nil || !isSHA256 || len(raw) != sha256.Size {
		return spore.Errorf(spore.CodeUnsupported, "artifact %s has the digest %q, which cannot be verified", d.artifact.ID, d.artifact.Digest)
	}
	name := filepath.Join(filepath.Dir(d.to), "."+filepath.Base(d.to)+"."+hex.EncodeToString(raw[:8])+".part")
	if d.part, err = os.OpenFile(name, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o666); err != nil {
		return err
	}
	err = unix.Flock(int(d.part.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		err = spore.Errorf(spore.CodeBusy, "another download writes to %s", name)
	}
	if info, statErr := d.part.Stat(); err == nil && statErr == nil && !info.Mode().IsRegular() {
		err = spore.Errorf(spore.CodeConflict, "%s is no file", name)
	}
	if err != nil {
		d.part.Close()
	}
	return err
}

// admit gives the file, which is whole, its name.
func (d *download) admit() error {
	if err := d.part.Sync(); err != nil {
		return err
	}
	flags := uint(unix.RENAME_NOREPLACE)
	if d.force {
		flags = 0
	}
	err := unix.Renameat2(unix.AT_FDCWD, d.part.Name(), unix.AT_FDCWD, d.to, flags)
	switch {
	case errors.Is(err, unix.EEXIST):
		return d.taken()
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOSYS): // a filesystem that cannot do it in one step
		if err := d.free(); err != nil {
			return err
		}
		err = os.Rename(d.part.Name(), d.to)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", d.to, err)
	}
	return syncDir(filepath.Dir(d.to))
}

// syncDir makes the names in a directory durable.
func syncDir(name string) error {
	dir, err := os.Open(name)
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}
