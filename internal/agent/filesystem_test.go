package agent

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"connectrpc.com/connect"

	"github.com/sporevm/spore/api/filesystem"
)

func TestFilesystem(t *testing.T) {
	b := newBed(t)
	ctx := t.Context()
	dir := t.TempDir()
	made, err := b.files.MakeDir(ctx, connect.NewRequest(&filesystem.MakeDirRequest{Path: dir + "/a/b"}))
	if err != nil || made.Msg.GetEntry().GetType() != filesystem.FileType_FILE_TYPE_DIRECTORY || made.Msg.GetEntry().GetName() != "b" {
		t.Fatal(made, err)
	}
	if _, err := b.files.MakeDir(ctx, connect.NewRequest(&filesystem.MakeDirRequest{Path: dir + "/a"})); connect.CodeOf(err) != connect.CodeAlreadyExists {
		t.Fatal(err)
	}
	for path, text := range map[string]string{"/a/one": "1", "/a/b/two": "22"} {
		if err := os.WriteFile(dir+path, []byte(text), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	for link, target := range map[string]string{"/a/good": "one", "/a/dangling": "/no/such", "/a/loop": ".."} {
		if err := os.Symlink(target, dir+link); err != nil {
			t.Fatal(err)
		}
	}
	st, err := b.files.Stat(ctx, connect.NewRequest(&filesystem.StatRequest{Path: dir + "/a/good"}))
	if e := st.Msg.GetEntry(); err != nil || e.GetType() != filesystem.FileType_FILE_TYPE_FILE || e.GetSymlinkTarget() != dir+"/a/one" || e.GetSize() != 1 || e.GetMode() != 0o640 || e.GetOwner() == "" {
		t.Fatal(st, err)
	}
	list := func(depth uint32) []string {
		t.Helper()
		res, err := b.files.ListDir(ctx, connect.NewRequest(&filesystem.ListDirRequest{Path: dir + "/a", Depth: depth}))
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, e := range res.Msg.GetEntries() {
			names = append(names, strings.TrimPrefix(e.GetPath(), dir))
		}
		slices.Sort(names)
		return names
	}
	if got := list(0); !slices.Equal(got, []string{"/a/b", "/a/dangling", "/a/good", "/a/loop", "/a/one"}) {
		t.Error(got)
	}
	if got := list(1 << 31); !slices.Equal(got, []string{"/a/b", "/a/b/two", "/a/dangling", "/a/good", "/a/loop", "/a/one"}) {
		t.Error(got)
	}
	if _, err := b.files.ListDir(ctx, connect.NewRequest(&filesystem.ListDirRequest{Path: dir + "/a/one"})); connect.CodeOf(err) != connect.CodeInvalidArgument {
		t.Error(err)
	}
	moved, err := b.files.Move(ctx, connect.NewRequest(&filesystem.MoveRequest{Source: dir + "/a/b", Destination: dir + "/new/place"}))
	if err != nil || moved.Msg.GetEntry().GetPath() != dir+"/new/place" {
		t.Fatal(moved, err)
	}
	if _, err := b.files.Move(ctx, connect.NewRequest(&filesystem.MoveRequest{Source: dir + "/a/b", Destination: dir + "/x"})); connect.CodeOf(err) != connect.CodeNotFound {
		t.Error(err)
	}
	for range 2 { // what is not there counts as removed
		if _, err := b.files.Remove(ctx, connect.NewRequest(&filesystem.RemoveRequest{Path: dir + "/new"})); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := b.files.Stat(ctx, connect.NewRequest(&filesystem.StatRequest{Path: dir + "/new"})); connect.CodeOf(err) != connect.CodeNotFound {
		t.Error(err)
	}
	for _, path := range []string{"/", "", "/tmp/.."} {
		if _, err := b.files.Remove(ctx, connect.NewRequest(&filesystem.RemoveRequest{Path: path})); connect.CodeOf(err) != connect.CodeInvalidArgument {
			t.Errorf("%q: %v", path, err)
		}
	}
}

func TestWatchDir(t *testing.T) {
	b := newBed(t)
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	s, err := b.files.WatchDir(ctx, connect.NewRequest(&filesystem.WatchDirRequest{Path: dir, Recursive: true, IncludeEntry: true}))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if !s.Receive() || s.Msg().GetStart() == nil {
		t.Fatal(s.Msg(), s.Err())
	}
	for _, path := range []string{"/deep/er/file", "/top"} {
		if res, body := b.do(t, "POST", filesAt(dir+path), strings.NewReader("text"), octets); res.StatusCode != 200 {
			t.Fatalf("%s", body)
		}
	}
	waiting := map[string]bool{"deep/er/file CREATE": true, "top CREATE": true, "top WRITE": true}
	for len(waiting) > 0 && s.Receive() {
		e := s.Msg().GetFilesystem()
		if isStaged(e.GetName()) {
			t.Errorf("an unfinished upload shows: %v", e)
		}
		if e.GetName() == "top" && e.GetEntry().GetSize() != 4 {
			t.Errorf("%v", e)
		}
		delete(waiting, e.GetName()+" "+strings.TrimPrefix(e.GetType().String(), "EVENT_TYPE_"))
	}
	if s.Err() != nil {
		t.Fatal(waiting, s.Err())
	}
}

func TestWatcher(t *testing.T) {
	b := newBed(t)
	dir := t.TempDir()
	w, err := b.files.CreateWatcher(t.Context(), connect.NewRequest(&filesystem.CreateWatcherRequest{Path: dir}))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "f"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	id := w.Msg.GetWatcherId()
	for {
		res, err := b.files.GetWatcherEvents(t.Context(), connect.NewRequest(&filesystem.GetWatcherEventsRequest{WatcherId: id}))
		if err != nil {
			t.Fatal(err)
		}
		if len(res.Msg.GetEvents()) > 0 {
			break
		}
	}
	if _, err := b.files.RemoveWatcher(t.Context(), connect.NewRequest(&filesystem.RemoveWatcherRequest{WatcherId: id})); err != nil {
		t.Fatal(err)
	}
	if _, err := b.files.GetWatcherEvents(t.Context(), connect.NewRequest(&filesystem.GetWatcherEventsRequest{WatcherId: id})); connect.CodeOf(err) != connect.CodeNotFound {
		t.Fatal(err)
	}
	if _, err := b.files.CreateWatcher(t.Context(), connect.NewRequest(&filesystem.CreateWatcherRequest{Path: dir + "/none"})); connect.CodeOf(err) != connect.CodeNotFound {
		t.Fatal(err)
	}
}
