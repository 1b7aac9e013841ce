package client

import (
	"context"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"time"

	"connectrpc.com/connect"

	"github.com/sporevm/spore/api/filesystem"
)

// Paths in a sandbox may be relative, which means to the image's own working directory, and may begin with "~".

// As answers a handle through which files are read and written as a user of the guest, given by name or number. It does
// not alter s. Commands have a field of their own for that.
func (s *Sandbox) As(user string) *Files { return &Files{sandbox: s, user: user} }

// Files answers a handle to the sandbox's files, for the image's own user.
func (s *Sandbox) Files() *Files { return &Files{sandbox: s} }

// Files reads and writes the files of a sandbox as one of its users.
type Files struct {
	sandbox *Sandbox
	user    string
}

// FileInfo describes a file of a sandbox.
type FileInfo struct {
	Name string
	Path string // absolute
	Size int64
	// Mode has the type and permission bits. A symbolic link shows the type of what it leads to, unless it leads nowhere.
	Mode    fs.FileMode
	Owner   string
	Group   string
	ModTime time.Time
	// SymlinkTarget is what a symbolic link says; "" for all else.
	SymlinkTarget string
}

// IsDir says whether it is a directory, or a link to one.
func (i FileInfo) IsDir() bool { return i.Mode.IsDir() }

func fileInfo(e *filesystem.EntryInfo) FileInfo {
	i := FileInfo{
		Name: e.GetName(), Path: e.GetPath(), Size: e.GetSize(), Mode: fs.FileMode(e.GetMode()) & fs.ModePerm,
		Owner: e.GetOwner(), Group: e.GetGroup(), SymlinkTarget: e.GetSymlinkTarget(),
	}
	if e.GetModifiedTime() != nil {
		i.ModTime = e.GetModifiedTime().AsTime()
	}
	switch e.GetType() {
	case filesystem.FileType_FILE_TYPE_FILE:
	case filesystem.FileType_FILE_TYPE_DIRECTORY:
		i.Mode |= fs.ModeDir
	case filesystem.FileType_FILE_TYPE_SYMLINK:
		i.Mode |= fs.ModeSymlink
	default:
		i.Mode |= fs.ModeIrregular
	}
	return i
}

func call[Q any](f *Files, msg *Q) *connect.Request[Q] {
	r := connect.NewRequest(msg)
	setUser(r.Header(), f.user)
	return r
}

// Stat describes a file. One that does not exist is spore.CodeNotFound.
func (f *Files) Stat(ctx context.Context, path string) (FileInfo, error) {
	r, err := f.sandbox.files.Stat(ctx, call(f, &filesystem.StatRequest{Path: path}))
	if err != nil {
		return FileInfo{}, agentError(err)
	}
	return fileInfo(r.Msg.GetEntry()), nil
}

// List lists a directory and its subdirectories down to depth, 1 being the directory alone.
func (f *Files) List(ctx context.Context, path string, depth int) ([]FileInfo, error) {
	r, err := f.sandbox.files.ListDir(ctx, call(f, &filesystem.ListDirRequest{Path: path, Depth: uint32(max(depth, 1))}))
	if err != nil {
		return nil, agentError(err)
	}
	out := make([]FileInfo, 0, len(r.Msg.GetEntries()))
	for _, e := range r.Msg.GetEntries() {
		out = append(out, fileInfo(e))
	}
	return out, nil
}

// Mkdir makes a directory and its parents. One that exists is spore.CodeConflict.
func (f *Files) Mkdir(ctx context.Context, path string) error {
	_, err := f.sandbox.files.MakeDir(ctx, call(f, &filesystem.MakeDirRequest{Path: path}))
	return agentError(err)
}

// Rename moves a file or directory, replacing a file that is there.
func (f *Files) Rename(ctx context.Context, from, to string) error {
	_, err := f.sandbox.files.Move(ctx, call(f, &filesystem.MoveRequest{Source: from, Destination: to}))
	return agentError(err)
}

// Remove removes a file, or a directory with all it holds. What is not there counts as removed.
func (f *Files) Remove(ctx context.Context, path string) error {
	_, err := f.sandbox.files.Remove(ctx, call(f, &filesystem.RemoveRequest{Path: path}))
	return agentError(err)
}

func (f *Files) url(path string) string {
	q := url.Values{"path": {path}}
	if f.user != "" {
		q.Set("username", f.user)
	}
	return f.sandbox.agent + "/files?" + q.Encode()
}

func (f *Files) do(r *http.Request, path string) (*http.Response, error) {
	setUser(r.Header, f.user)
	return f.sandbox.do(r, path)
}

// Open reads a file's contents, streamed. The caller closes the reader. A file that does not exist is
// spore.CodeNotFound, a directory spore.CodeInvalid. Reading fails if the file does not arrive whole.
func (f *Files) Open(ctx context.Context, path string) (io.ReadCloser, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, f.url(path), nil)
	if err != nil {
		return nil, err
	}
	r.Header.Set("Accept-Encoding", "identity")
	resp, err := f.do(r, path)
	if err != nil {
		return nil, err
	}
	return resp.Body, nil
}

// Read reads a whole file.
func (f *Files) Read(ctx context.Context, path string) ([]byte, error) {
	r, err := f.Open(ctx, path)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

// Write writes a file, streamed, and makes its parent directories. Until it has arrived whole, what was there before
// stays: a disk that is full is spore.CodeNoSpace and changes nothing. A file that exists keeps its mode.
func (f *Files) Write(ctx context.Context, path string, contents io.Reader) error {
	body := &errorKeeper{r: contents}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, f.url(path), body)
	if err != nil {
		return err
	}
	r.Header.Set("Content-Type", "application/octet-stream")
	resp, err := f.do(r, path)
	if readErr := body.failure(); readErr != nil {
		err = readErr // the request broke because its body did
	}
	if resp != nil {
		// What the answer says the agent has done, its status has said already.
		io.Copy(io.Discard, io.LimitReader(resp.Body, maxError))
		resp.Body.Close()
	}
	return err
}
