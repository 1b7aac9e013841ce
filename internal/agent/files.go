package agent

import (
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"mime"
	"mime/multipart"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"
)

// written is one file of the answer to an upload.
type written struct {
	Name     string            `json:"name"`
	Type     string            `json:"type"`
	Path     string            `json:"path"`
	Metadata map[string]string `json:"metadata,omitempty"`
}

// fileUser is who a request for /files acts for.
func (a *Agent) fileUser(r *http.Request) (User, error) {
	name := r.URL.Query().Get("username")
	if name == "" {
		name = requestUser(r.Header)
	}
	return a.user(name)
}

// serveDownload answers GET /files?path=.
func (a *Agent) serveDownload(w http.ResponseWriter, r *http.Request) {
	u, err := a.fileUser(r)
	if err != nil {
		refuseErr(w, err)
		return
	}
	path := r.URL.Query().Get("path")
	if path == "" {
		refuse(w, http.StatusBadRequest, errors.New("path: is missing"))
		return
	}
	if path, err = a.resolvePath(path, u); err != nil {
		refuseErr(w, err)
		return
	}
	info, err := os.Stat(path)
	if err != nil {
		refuseFile(w, err)
		return
	}
	if !info.Mode().IsRegular() {
		kind := "not a regular file"
		if info.IsDir() {
			kind = "a directory"
		}
		refuse(w, http.StatusBadRequest, fmt.Errorf("path: %s is %s", path, kind))
		return
	}
	f, err := os.Open(path)
	if err != nil {
		refuseFile(w, err)
		return
	}
	defer f.Close()
	h := w.Header()
	h.Set("Content-Type", "application/octet-stream")
	h.Set("Content-Disposition", mime.FormatMediaType("inline", map[string]string{"filename": filepath.Base(path)}))
	h.Add("Vary", "Accept-Encoding")
	// Clients that only say what they could decode name several codings; who asks for gzip names it alone.
	if strings.TrimSpace(r.Header.Get("Accept-Encoding")) == "gzip" && r.Header.Get("Range") == "" && r.Method == http.MethodGet {
		h.Set("Content-Encoding", "gzip")
		z, err := gzip.NewWriterLevel(w, gzip.BestSpeed)
		if err == nil {
			_, err = io.Copy(z, f)
		}
		if err == nil {
			err = z.Close()
		}
		if err != nil {
			panic(http.ErrAbortHandler) // the client must not take what it got for the whole
		}
		return
	}
	if info.Size() == 0 { // files of /proc and /sys have a length only once they are read
		a.serveUnsized(w, f)
		return
	}
	http.ServeContent(w, r, "", info.ModTime(), f)
}

// serveUnsized serves a file that says it is empty.
func (a *Agent) serveUnsized(w http.ResponseWriter, f *os.File) {
	if _, err := io.Copy(w, f); err != nil {
		panic(http.ErrAbortHandler)
	}
}

// refuseFile answers an error of the file system.
func refuseFile(w http.ResponseWriter, err error) {
	switch {
	case isNoSpace(err):
		refuse(w, http.StatusInsufficientStorage, fmt.Errorf("the sandbox's disk is full: %w", err))
	case errors.Is(err, fs.ErrExist):
		refuse(w, http.StatusBadRequest, err)
	default:
		switch connect.CodeOf(fileError(err)) {
		case connect.CodeNotFound:
			refuse(w, http.StatusNotFound, err)
		case connect.CodePermissionDenied:
			refuse(w, http.StatusForbidden, err)
		case connect.CodeInvalidArgument, connect.CodeFailedPrecondition:
			refuse(w, http.StatusBadRequest, err)
		default:
			refuse(w, http.StatusInternalServerError, err)
		}
	}
}

// maxDrain bounds what is still read of a body after its upload has been refused, in bytes.
const maxDrain = 1 << 30

// serveUpload answers POST /files: one file as octet-stream, or any number as multipart. A refusal is sent at once, and
// then the rest of the body is read: a connection that is cut under a client's writes loses the answer.
func (a *Agent) serveUpload(w http.ResponseWriter, r *http.Request) {
	out := http.NewResponseController(w)
	// Fails for HTTP/2, which needs no leave to answer early.
	duplex := out.EnableFullDuplex() == nil
	a.receiveUpload(w, r)
	if duplex && out.Flush() == nil {
		io.CopyN(io.Discard, r.Body, maxDrain) // nothing is left after a success
	}
}

func (a *Agent) receiveUpload(w http.ResponseWriter, r *http.Request) {
	u, err := a.fileUser(r)
	if err != nil {
		refuseErr(w, err)
		return
	}
	meta, err := uploadMetadata(r.Header)
	if err != nil {
		refuse(w, http.StatusBadRequest, err)
		return
	}
	kind, params, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil {
		refuse(w, http.StatusBadRequest, fmt.Errorf("Content-Type: %w", err))
		return
	}
	body := io.Reader(r.Body)
	switch coding := r.Header.Get("Content-Encoding"); coding {
	case "", "identity":
	case "gzip":
		z, err := gzip.NewReader(r.Body)
		if err != nil {
			refuse(w, http.StatusBadRequest, fmt.Errorf("the body is not gzip: %w", err))
			return
		}
		body = z
	default:
		refuse(w, http.StatusUnsupportedMediaType, fmt.Errorf("Content-Encoding: %q is not supported", coding))
		return
	}
	path := r.URL.Query().Get("path")
	var files []written
	switch {
	case kind == "multipart/form-data":
		files, err = a.uploadParts(newForm(body, params["boundary"]), path, u, meta)
	case path == "":
		err = badUpload("path: is missing")
	default:
		var f written
		f, err = a.upload(path, body, u, meta)
		files = append(files, f)
	}
	var bad badUpload
	var read *readError
	switch {
	case err == nil:
		reply(w, http.StatusOK, files)
	case errors.As(err, &bad), errors.As(err, &read):
		refuse(w, http.StatusBadRequest, err)
	case connect.CodeOf(err) != connect.CodeUnknown:
		refuseErr(w, err)
	default:
		refuseFile(w, err)
	}
}

// badUpload is a request that makes no sense.
type badUpload string

func (e badUpload) Error() string { return string(e) }

// readError is a failure to read the request, as opposed to writing the file.
type readError struct{ err error }

func (e *readError) Error() string { return "the upload broke off: " + e.err.Error() }
func (e *readError) Unwrap() error { return e.err }

type bodyReader struct{ io.Reader }

func (b bodyReader) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	if err != nil && err != io.EOF {
		err = &readError{err}
	}
	return n, err
}

// form is a multipart reader that tells the end of the form from the end of what has arrived of it.
type form struct {
	*multipart.Reader
	body *endingReader
	last string
}

func newForm(body io.Reader, boundary string) *form {
	f := &form{body: &endingReader{Reader: body, keep: len(boundary) + 64}, last: "--" + boundary + "--"}
	f.Reader = multipart.NewReader(f.body, boundary)
	return f
}

// complete says whether the closing boundary has been read.
func (f *form) complete() bool { return strings.Contains(string(f.body.end), f.last) }

// endingReader remembers the last bytes that were read.
type endingReader struct {
	io.Reader
	keep int
	end  []byte
}

func (e *endingReader) Read(p []byte) (int, error) {
	n, err := e.Reader.Read(p)
	e.end = append(e.end, p[:n]...)
	e.end = append(e.end[:0], e.end[max(0, len(e.end)-e.keep):]...)
	return n, err
}

func (a *Agent) uploadParts(in *form, path string, u User, meta map[string]string) ([]written, error) {
	var files []written
	for {
		part, err := in.NextRawPart()
		if err == io.EOF && in.complete() {
			break
		}
		if err != nil {
			return files, &readError{err}
		}
		if part.FormName() != "file" {
			continue
		}
		to := path
		if to == "" || len(files) > 0 {
			// The standard library would cut the name down to its last element; here it is a whole path.
			_, params, err := mime.ParseMediaType(part.Header.Get("Content-Disposition"))
			if err != nil || params["filename"] == "" {
				return files, badUpload("a file of the form has no name, and there is no path")
			}
			if path != "" {
				return files, badUpload("path: may only be given for one file")
			}
			to = params["filename"]
		}
		f, err := a.upload(to, part, u, meta)
		if err != nil {
			return files, err
		}
		files = append(files, f)
	}
	if len(files) == 0 {
		return nil, badUpload(`the form has no field "file"`)
	}
	return files, nil
}

// upload writes one file. Until it is complete, what was there before stays.
func (a *Agent) upload(path string, body io.Reader, u User, meta map[string]string) (written, error) {
	full, err := a.resolvePath(path, u)
	if err != nil {
		return written{}, err
	}
	answer := written{Name: filepath.Base(full), Type: "file", Path: full, Metadata: meta}
	to := full
	if real, err := filepath.EvalSymlinks(full); err == nil {
		to = real // write through a link rather than over it
	}
	info, err := os.Stat(to)
	switch {
	case err == nil && info.IsDir(), strings.HasSuffix(path, "/"):
		return answer, badUpload(fmt.Sprintf("path: %s is a directory", full))
	case err == nil && !info.Mode().IsRegular(): // a device or a pipe: there is nothing to replace
		return answer, writeInto(to, body)
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return answer, err
	}
	if err := makeDirs(filepath.Dir(to), u); err != nil {
		return answer, err
	}
	s, err := newStaged(to)
	if err != nil {
		return answer, err
	}
	defer s.discard()
	if _, err := io.Copy(s.file, bodyReader{body}); err != nil {
		return answer, err
	}
	if os.Geteuid() == 0 {
		if err := s.file.Chown(int(u.UID), int(u.GID)); err != nil {
			return answer, err
		}
	}
	if info != nil {
		if err := s.file.Chmod(info.Mode().Perm()); err != nil {
			return answer, err
		}
	}
	for k, v := range meta {
		if err := unix.Fsetxattr(int(s.file.Fd()), metadataPrefix+k, []byte(v), 0); err != nil {
			return answer, fmt.Errorf("metadata %q: %w", k, err)
		}
	}
	return answer, s.commit()
}

func writeInto(path string, body io.Reader) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	if _, err := io.Copy(f, bodyReader{body}); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}

// uploadMetadata reads the X-Metadata-NAME headers.
func uploadMetadata(h http.Header) (map[string]string, error) {
	var meta map[string]string
	for name, values := range h {
		key, ok := strings.CutPrefix(name, "X-Metadata-")
		if !ok || len(values) == 0 {
			continue
		}
		key = strings.ToLower(key)
		if key == "" || len(key) > 200 || len(values[0]) > 4096 {
			return nil, fmt.Errorf("%s: names have 1 to 200 characters, values at most 4096", name)
		}
		if meta == nil {
			meta = map[string]string{}
		}
		meta[key] = values[0]
	}
	return meta, nil
}
