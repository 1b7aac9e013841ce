package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"syscall"

	"connectrpc.com/connect"

	"github.com/sporevm/spore/api/filesystem"
)

// filesystemService is the filesystem service of the wire.
type filesystemService struct{ agent *Agent }

// place resolves a path of a request.
func (s filesystemService) place(h http.Header, path string) (string, User, accounts, error) {
	if path == "" {
		return "", User{}, accounts{}, invalidf("path: is empty")
	}
	u, err := s.agent.user(requestUser(h))
	if err != nil {
		return "", u, accounts{}, err
	}
	acc, err := s.agent.accounts()
	if err != nil {
		return "", u, acc, connect.NewError(connect.CodeInternal, err)
	}
	full, err := s.agent.resolvePath(path, u)
	return full, u, acc, err
}

func (s filesystemService) Stat(_ context.Context, req *connect.Request[filesystem.StatRequest]) (*connect.Response[filesystem.StatResponse], error) {
	path, _, acc, err := s.place(req.Header(), req.Msg.GetPath())
	if err != nil {
		return nil, err
	}
	e, err := entryInfo(path, acc)
	if err != nil {
		return nil, fileError(err)
	}
	return connect.NewResponse(&filesystem.StatResponse{Entry: e}), nil
}

func (s filesystemService) MakeDir(_ context.Context, req *connect.Request[filesystem.MakeDirRequest]) (*connect.Response[filesystem.MakeDirResponse], error) {
	path, u, acc, err := s.place(req.Header(), req.Msg.GetPath())
	if err != nil {
		return nil, err
	}
	if info, err := os.Stat(path); err == nil {
		if !info.IsDir() {
			return nil, invalidf("path: %s exists and is not a directory", path)
		}
		return nil, connect.NewError(connect.CodeAlreadyExists, fmt.Errorf("%s exists", path))
	}
	if err := makeDirs(path, u); err != nil {
		return nil, fileError(err)
	}
	e, err := entryInfo(path, acc)
	if err != nil {
		return nil, fileError(err)
	}
	return connect.NewResponse(&filesystem.MakeDirResponse{Entry: e}), nil
}

func (s filesystemService) Move(_ context.Context, req *connect.Request[filesystem.MoveRequest]) (*connect.Response[filesystem.MoveResponse], error) {
	from, u, acc, err := s.place(req.Header(), req.Msg.GetSource())
	if err != nil {
		return nil, err
	}
	to, _, _, err := s.place(req.Header(), req.Msg.GetDestination())
	if err != nil {
		return nil, err
	}
	if _, err := os.Lstat(from); err != nil {
		return nil, fileError(err)
	}
	if err := makeDirs(filepath.Dir(to), u); err != nil {
		return nil, fileError(err)
	}
	if err := move(from, to); err != nil {
		return nil, fileError(err)
	}
	e, err := entryInfo(to, acc)
	if err != nil {
		return nil, fileError(err)
	}
	return connect.NewResponse(&filesystem.MoveResponse{Entry: e}), nil
}

// maxListing bounds the entries of one answer.
const maxListing = 100_000

func (s filesystemService) ListDir(ctx context.Context, req *connect.Request[filesystem.ListDirRequest]) (*connect.Response[filesystem.ListDirResponse], error) {
	path, _, acc, err := s.place(req.Header(), req.Msg.GetPath())
	if err != nil {
		return nil, err
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, fileError(err)
	}
	if !info.IsDir() {
		return nil, invalidf("path: %s is not a directory", path)
	}
	res := &filesystem.ListDirResponse{}
	var list func(dir string, depth uint32) error
	list = func(dir string, depth uint32) error {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return err
		}
		for _, d := range entries {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			full := filepath.Join(dir, d.Name())
			e, err := entryInfo(full, acc)
			if errors.Is(err, fs.ErrNotExist) { // removed meanwhile
				continue
			}
			if err != nil {
				return err
			}
			if len(res.Entries) == maxListing {
				return errListing
			}
			res.Entries = append(res.Entries, e)
			if depth > 1 && d.IsDir() {
				if err := list(full, depth-1); err != nil && !errors.Is(err, fs.ErrNotExist) {
					return err
				}
			}
		}
		return nil
	}
	switch err := list(path, max(1, req.Msg.GetDepth())); {
	case errors.Is(err, errListing):
		return nil, connect.NewError(connect.CodeResourceExhausted, errListing)
	case err != nil:
		return nil, fileError(err)
	}
	return connect.NewResponse(res), nil
}

var errListing = fmt.Errorf("the directory holds more than %d entries: list with less depth", maxListing)

func (s filesystemService) Remove(_ context.Context, req *connect.Request[filesystem.RemoveRequest]) (*connect.Response[filesystem.RemoveResponse], error) {
	path, _, _, err := s.place(req.Header(), req.Msg.GetPath())
	if err != nil {
		return nil, err
	}
	if path == "/" {
		return nil, invalidf("path: the root directory cannot be removed")
	}
	if err := os.RemoveAll(path); err != nil {
		if errors.Is(err, syscall.EBUSY) {
			err = fmt.Errorf("%w: something is mounted there", err)
		}
		return nil, fileError(err)
	}
	return connect.NewResponse(&filesystem.RemoveResponse{}), nil
}
