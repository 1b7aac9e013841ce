package agent

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"net/http"
	"time"

	"connectrpc.com/connect"

	"github.com/sporevm/spore/api/filesystem"
)

// watchRequest is what both requests for a watch have in common.
type watchRequest interface {
	GetPath() string
	GetRecursive() bool
	GetIncludeEntry() bool
	GetAllowNetworkMounts() bool
}

func (s filesystemService) watch(h http.Header, m watchRequest) (*watch, error) {
	path, _, _, err := s.place(h, m.GetPath())
	if err != nil {
		return nil, err
	}
	return newWatch(watchOptions{path: path, recursive: m.GetRecursive(), describe: m.GetIncludeEntry(), network: m.GetAllowNetworkMounts()})
}

func (s filesystemService) WatchDir(ctx context.Context, req *connect.Request[filesystem.WatchDirRequest], stream *connect.ServerStream[filesystem.WatchDirResponse]) error {
	interval, err := keepaliveInterval(req.Header())
	if err != nil {
		return err
	}
	w, err := s.watch(req.Header(), req.Msg)
	if err != nil {
		return err
	}
	defer w.close()
	err = stream.Send(&filesystem.WatchDirResponse{Event: &filesystem.WatchDirResponse_Start{Start: &filesystem.WatchDirResponse_StartEvent{}}})
	if err != nil {
		return err
	}
	idle := time.NewTimer(interval)
	defer idle.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-idle.C:
			err = stream.Send(&filesystem.WatchDirResponse{Event: &filesystem.WatchDirResponse_Keepalive{Keepalive: &filesystem.WatchDirResponse_KeepAlive{}}})
			if err != nil {
				return err
			}
		case <-w.wake:
			for {
				events, err := w.take()
				if err != nil {
					return err
				}
				if len(events) == 0 {
					break
				}
				for _, e := range events {
					if err := stream.Send(&filesystem.WatchDirResponse{Event: &filesystem.WatchDirResponse_Filesystem{Filesystem: e}}); err != nil {
						return err
					}
				}
			}
		}
		idle.Reset(interval)
	}
}

func (s filesystemService) CreateWatcher(_ context.Context, req *connect.Request[filesystem.CreateWatcherRequest]) (*connect.Response[filesystem.CreateWatcherResponse], error) {
	w, err := s.watch(req.Header(), req.Msg)
	if err != nil {
		return nil, err
	}
	var random [10]byte
	rand.Read(random[:]) // never fails: crypto/rand ends the process instead
	id := "w" + hex.EncodeToString(random[:])
	if err := s.agent.watchers.add(id, w); err != nil {
		w.close()
		return nil, err
	}
	return connect.NewResponse(&filesystem.CreateWatcherResponse{WatcherId: id}), nil
}

func (s filesystemService) GetWatcherEvents(_ context.Context, req *connect.Request[filesystem.GetWatcherEventsRequest]) (*connect.Response[filesystem.GetWatcherEventsResponse], error) {
	w, err := s.agent.watchers.get(req.Msg.GetWatcherId())
	if err != nil {
		return nil, err
	}
	events, err := w.take()
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&filesystem.GetWatcherEventsResponse{Events: events}), nil
}

func (s filesystemService) RemoveWatcher(_ context.Context, req *connect.Request[filesystem.RemoveWatcherRequest]) (*connect.Response[filesystem.RemoveWatcherResponse], error) {
	if err := s.agent.watchers.remove(req.Msg.GetWatcherId()); err != nil {
		return nil, err
	}
	return connect.NewResponse(&filesystem.RemoveWatcherResponse{}), nil
}
