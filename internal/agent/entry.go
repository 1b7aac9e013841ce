package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/sporevm/spore/api/filesystem"
)

// entryInfo describes the file at path, which is absolute and clean.
func entryInfo(path string, acc accounts) (*filesystem.EntryInfo, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return nil, err
	}
	e := &filesystem.EntryInfo{Name: filepath.Base(path), Path: path}
	if info.Mode()&fs.ModeSymlink != 0 {
		target, err := os.Readlink(path)
		if err != nil {
			return nil, err
		}
		if !filepath.IsAbs(target) {
			target = filepath.Join(filepath.Dir(path), target)
		}
		e.SymlinkTarget = &target
		if led, err := os.Stat(path); err == nil {
			info = led
		}
	}
	switch {
	case info.Mode().IsRegular():
		e.Type = filesystem.FileType_FILE_TYPE_FILE
	case info.IsDir():
		e.Type = filesystem.FileType_FILE_TYPE_DIRECTORY
	case info.Mode()&fs.ModeSymlink != 0:
		e.Type = filesystem.FileType_FILE_TYPE_SYMLINK
	}
	e.Size = info.Size()
	e.Permissions = info.Mode().String()
	e.ModifiedTime = timestamppb.New(info.ModTime())
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		e.Mode = st.Mode & 0o7777
		e.Owner, e.Group = acc.userName(st.Uid), acc.groupName(st.Gid)
	}
	if info.Mode().IsRegular() || info.IsDir() {
		e.Metadata = readMetadata(path)
	}
	return e, nil
}

// metadataPrefix is where metadata of uploads is kept: the name that clients of the protocol know.
const metadataPrefix = "user.e2b."

// readMetadata returns what an uploader attached to a file. File systems without extended attributes have none.
func readMetadata(path string) map[string]string {
	size, err := unix.Listxattr(path, nil)
	if err != nil || size == 0 {
		return nil
	}
	names := make([]byte, size)
	if size, err = unix.Listxattr(path, names); err != nil {
		return nil
	}
	var meta map[string]string
	for _, name := range strings.Split(string(names[:size]), "\x00") {
		key, ok := strings.CutPrefix(name, metadataPrefix)
		if !ok {
			continue
		}
		value := make([]byte, 64<<10) // the kernel's limit
		n, err := unix.Getxattr(path, name, value)
		if err != nil {
			continue // removed meanwhile
		}
		if meta == nil {
			meta = map[string]string{}
		}
		meta[key] = string(value[:n])
	}
	return meta
}

// fileError gives an error of the file system the code that clients expect.
func fileError(err error) error {
	code := connect.CodeInternal
	switch {
	case errors.Is(err, fs.ErrNotExist):
		code = connect.CodeNotFound
	case errors.Is(err, fs.ErrExist), errors.Is(err, syscall.ENOTEMPTY):
		code = connect.CodeAlreadyExists
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EROFS):
		code = connect.CodePermissionDenied
	case isNoSpace(err):
		code = connect.CodeResourceExhausted
	case errors.Is(err, syscall.ENOTDIR), errors.Is(err, syscall.EISDIR), errors.Is(err, syscall.EINVAL),
		errors.Is(err, syscall.ENAMETOOLONG), errors.Is(err, syscall.ELOOP):
		code = connect.CodeInvalidArgument
	case errors.Is(err, syscall.EBUSY), errors.Is(err, syscall.EXDEV), errors.Is(err, syscall.ETXTBSY):
		code = connect.CodeFailedPrecondition
	}
	return connect.NewError(code, err)
}

func isNoSpace(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) || errors.Is(err, syscall.EFBIG)
}

// makeDirs makes a directory and what is missing above it, all owned by the user. It fails with fs.ErrExist when there is
// something that is not a directory.
func makeDirs(path string, u User) error {
	info, err := os.Stat(path)
	switch {
	case err == nil && info.IsDir():
		return nil
	case err == nil:
		return &fs.PathError{Op: "mkdir", Path: path, Err: syscall.ENOTDIR}
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	if parent := filepath.Dir(path); parent != path {
		if err := makeDirs(parent, u); err != nil {
			return err
		}
	}
	if err := os.Mkdir(path, 0o755); err != nil {
		if errors.Is(err, fs.ErrExist) { // somebody was faster, or it is a dangling link
			if info, err2 := os.Stat(path); err2 == nil && info.IsDir() {
				return nil
			}
		}
		return err
	}
	return chown(path, u)
}

// chown gives a file to the user. Outside a guest, without the right to, files stay whose they are.
func chown(path string, u User) error {
	if os.Geteuid() != 0 {
		return nil
	}
	return os.Lchown(path, int(u.UID), int(u.GID))
}

// move renames, and copies where a file would cross file systems.
func move(from, to string) error {
	err := os.Rename(from, to)
	if !errors.Is(err, syscall.EXDEV) {
		return err
	}
	info, err2 := os.Lstat(from)
	if err2 != nil {
		return err2
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("only files can be moved from one file system to another: %w", err)
	}
	if err := copyAcross(from, to, info); err != nil {
		return err
	}
	return os.Remove(from)
}

func copyAcross(from, to string, info fs.FileInfo) error {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	s, err := newStaged(to)
	if err != nil {
		return err
	}
	defer s.discard()
	if _, err := s.file.ReadFrom(src); err != nil {
		return err
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok && os.Geteuid() == 0 {
		if err := s.file.Chown(int(st.Uid), int(st.Gid)); err != nil {
			return err
		}
	}
	if err := s.file.Chmod(info.Mode()); err != nil {
		return err
	}
	return s.commit()
}
