package image

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"sync"

	spore "github.com/sporevm/spore"
)

// files is a set of files with slash-separated names: a directory, or a tar archive that is read in place.
type files interface {
	// open fails with an error that is fs.ErrNotExist for a name that is not there.
	open(name string) (io.ReadCloser, error)
}

// isMissing says whether err means that a file is not among the files, rather than that they cannot be reached.
func isMissing(err error) bool {
	var typed *spore.Error
	return errors.Is(err, fs.ErrNotExist) && !errors.As(err, &typed)
}

// dirFiles is a directory. Symlinks in it lead nowhere outside of it.
type dirFiles string

func (d dirFiles) open(name string) (io.ReadCloser, error) {
	root, err := os.OpenRoot(string(d))
	if err != nil {
		return nil, sourceError(string(d), err)
	}
	defer root.Close()
	f, err := root.Open(name)
	if err != nil {
		return nil, err
	}
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		f.Close()
		return nil, fmt.Errorf("%s: %w", name, errors.Join(err, fs.ErrNotExist))
	}
	return f, nil
}

// maxArchiveMembers bounds the index of an archive.
const maxArchiveMembers = 1 << 17

// tarFiles is a tar archive. Its index is read once, at the first use.
type tarFiles struct {
	path string

	once    sync.Once
	err     error
	members map[string]member
}

// member is where an archive has a file, or which other one a link stands for.
type member struct {
	offset, size int64
	link         string
}

func (t *tarFiles) open(name string) (io.ReadCloser, error) {
	t.once.Do(func() { t.members, t.err = indexTar(t.path) })
	if t.err != nil {
		return nil, t.err
	}
	m, ok := t.members[path.Clean(name)]
	for hops := 0; ok && m.link != "" && hops < 8; hops++ {
		m, ok = t.members[m.link]
	}
	if !ok || m.link != "" {
		return nil, fmt.Errorf("%s: %w", name, fs.ErrNotExist)
	}
	f, err := os.Open(t.path)
	if err != nil {
		return nil, sourceError(t.path, err)
	}
	return sectionFile{io.NewSectionReader(f, m.offset, m.size), f}, nil
}

type sectionFile struct {
	io.Reader
	io.Closer
}

// indexTar notes where the members of an archive begin. Their content is skipped, not read.
func indexTar(file string) (map[string]member, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, sourceError(file, err)
	}
	defer f.Close()
	if err := checkArchive(f, file); err != nil {
		return nil, err
	}
	members := map[string]member{}
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if err == io.EOF && len(members) > 0 {
			return members, nil
		}
		if err != nil {
			return nil, notArchive(file, "is not a complete tar archive").WithCause(err)
		}
		name := path.Clean(h.Name)
		switch h.Typeflag {
		case tar.TypeReg:
			offset, err := f.Seek(0, io.SeekCurrent)
			if err != nil {
				return nil, sourceError(file, err)
			}
			members[name] = member{offset: offset, size: h.Size}
		case tar.TypeSymlink:
			members[name] = member{link: path.Join(path.Dir(name), h.Linkname)}
		case tar.TypeLink:
			members[name] = member{link: path.Clean(h.Linkname)}
		}
		if len(members) > maxArchiveMembers {
			return nil, notArchive(file, "has too many members to be an image")
		}
	}
}

// checkArchive refuses what is plainly no tar archive, with a reason better than a parser's, and rewinds f.
func checkArchive(f *os.File, file string) error {
	st, err := f.Stat()
	if err != nil {
		return sourceError(file, err)
	}
	if !st.Mode().IsRegular() {
		return notArchive(file, "is not a regular file")
	}
	if st.Size() == 0 {
		return notArchive(file, "is empty")
	}
	magic := make([]byte, 6)
	n, err := io.ReadFull(f, magic)
	if err != nil && err != io.ErrUnexpectedEOF {
		return sourceError(file, err)
	}
	for name, prefix := range map[string][]byte{"gzip": gzipMagic, "zstd": zstdMagic, "xz": []byte("\xfd7zXZ"), "bzip2": []byte("BZh")} {
		if bytes.HasPrefix(magic[:n], prefix) {
			return spore.Invalidf("image", "archive %s is compressed with %s", file, name).WithHint("decompress the archive first; its layers may stay compressed")
		}
	}
	_, err = f.Seek(0, io.SeekStart)
	return err
}

func notArchive(file, why string) *spore.Error {
	return spore.Invalidf("image", "archive %s %s", file, why).
		WithHint("save the image again, with skopeo copy, podman save or docker save")
}

// sourceError says why a local source cannot be read.
func sourceError(file string, err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return spore.Errorf(spore.CodeNotFound, "%s does not exist on the server's machine", file).WithCause(err).
			WithHint("give a path as the server sees it")
	case errors.Is(err, fs.ErrPermission):
		return spore.Invalidf("image", "%s cannot be read by the server", file).WithCause(err).
			WithHint("let the user that runs the server read it")
	case strings.Contains(err.Error(), "not a directory"):
		return spore.Invalidf("image", "%s is not a directory", file).WithCause(err).
			WithHint("oci: takes a directory; for a file use oci-archive: or docker-archive:")
	}
	return spore.Invalidf("image", "%s cannot be read: %v", file, err).WithCause(err).WithHint("check the path")
}
