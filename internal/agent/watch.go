package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"connectrpc.com/connect"
	"github.com/fsnotify/fsnotify"
	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/api/filesystem"
)

// maxPending bounds the events of one watch that nobody has fetched.
const maxPending = 16_384

var (
	errOverflow   = errors.New("changes came faster than they were fetched, and some were lost: watch again")
	errWatchEnded = errors.New("the watch has ended")
)

// watchOptions say what to watch.
type watchOptions struct {
	path      string // absolute
	recursive bool
	describe  bool // describe the file in each event
	network   bool // allow file systems that cannot tell all their changes
}

// watch collects the changes of one directory.
type watch struct {
	options watchOptions
	notify  *fsnotify.Watcher
	wake    chan struct{} // has a value when there is something to take

	mu      sync.Mutex
	pending []*filesystem.FilesystemEvent
	failed  error
}

func newWatch(o watchOptions) (*watch, error) {
	info, err := os.Stat(o.path)
	if err != nil {
		return nil, fileError(err)
	}
	if !info.IsDir() {
		return nil, invalidf("path: %s is not a directory", o.path)
	}
	if o.path, err = filepath.EvalSymlinks(o.path); err != nil {
		return nil, fileError(err)
	}
	if !o.network {
		if err := refuseNetwork(o.path); err != nil {
			return nil, err
		}
	}
	notify, err := fsnotify.NewBufferedWatcher(512)
	if err != nil {
		return nil, connect.NewError(connect.CodeResourceExhausted, err)
	}
	w := &watch{options: o, notify: notify, wake: make(chan struct{}, 1)}
	if err := w.add(o.path, false); err != nil {
		notify.Close()
		return nil, watchError(err)
	}
	go w.collect()
	return w, nil
}

func watchError(err error) error {
	if isNoSpace(err) { // what inotify says when its limit is reached
		return connect.NewError(connect.CodeResourceExhausted, errors.New("the sandbox watches as many directories as its kernel allows"))
	}
	return fileError(err)
}

func refuseNetwork(path string) error {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return fileError(err)
	}
	switch uint32(st.Type) {
	case unix.NFS_SUPER_MAGIC, unix.SMB_SUPER_MAGIC, unix.SMB2_SUPER_MAGIC, unix.CIFS_SUPER_MAGIC, unix.FUSE_SUPER_MAGIC,
		unix.V9FS_MAGIC, unix.CEPH_SUPER_MAGIC, unix.AFS_SUPER_MAGIC:
		return failedPrecondition(fmt.Errorf("%s is on a network file system, where changes made elsewhere are not seen", path))
	}
	return nil
}

// add watches a directory and, if asked, those below it. With report set, what is in it already counts as created: it
// came between the creation of the directory and this call.
func (w *watch) add(dir string, report bool) error {
	if err := w.notify.Add(dir); err != nil {
		return err
	}
	if !w.options.recursive {
		return nil
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		full := filepath.Join(dir, e.Name())
		if report {
			w.emit(full, filesystem.EventType_EVENT_TYPE_CREATE)
		}
		if e.IsDir() {
			if err := w.add(full, report); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	return nil
}

var eventTypes = []struct {
	op    fsnotify.Op
	event filesystem.EventType
}{
	{fsnotify.Create, filesystem.EventType_EVENT_TYPE_CREATE},
	{fsnotify.Rename, filesystem.EventType_EVENT_TYPE_RENAME},
	{fsnotify.Chmod, filesystem.EventType_EVENT_TYPE_CHMOD},
	{fsnotify.Write, filesystem.EventType_EVENT_TYPE_WRITE},
	{fsnotify.Remove, filesystem.EventType_EVENT_TYPE_REMOVE},
}

func (w *watch) collect() {
	for {
		select {
		case e, ok := <-w.notify.Events:
			if !ok {
				w.fail(errWatchEnded)
				return
			}
			for _, t := range eventTypes {
				if e.Has(t.op) {
					w.emit(e.Name, t.event)
				}
			}
			if e.Has(fsnotify.Create) && w.options.recursive {
				if info, err := os.Lstat(e.Name); err == nil && info.IsDir() {
					if err := w.add(e.Name, true); err != nil && !errors.Is(err, fs.ErrNotExist) {
						w.fail(watchError(err))
					}
				}
			}
		case err, ok := <-w.notify.Errors:
			if ok && errors.Is(err, fsnotify.ErrEventOverflow) {
				err = connect.NewError(connect.CodeResourceExhausted, errOverflow)
			}
			if ok {
				w.fail(err)
			}
		}
	}
}

func (w *watch) emit(path string, t filesystem.EventType) {
	if isStaged(path) {
		return
	}
	name, err := filepath.Rel(w.options.path, path)
	if err != nil || name == "." {
		return // the directory itself
	}
	event := &filesystem.FilesystemEvent{Name: name, Type: t}
	if w.options.describe {
		if acc, err := readAccounts("/etc/passwd", "/etc/group"); err == nil {
			event.Entry, _ = entryInfo(path, acc) // gone already: the event says so later
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.pending) >= maxPending {
		if w.failed == nil {
			w.failed = connect.NewError(connect.CodeResourceExhausted, errOverflow)
		}
	} else {
		w.pending = append(w.pending, event)
	}
	w.poke()
}

func (w *watch) fail(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.failed == nil {
		w.failed = err
	}
	w.poke()
}

func (w *watch) poke() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// take returns what has happened since the last call. An error means that the watch is of no more use.
func (w *watch) take() ([]*filesystem.FilesystemEvent, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	events := w.pending
	w.pending = nil
	if len(events) > 0 {
		return events, nil
	}
	return nil, w.failed
}

func (w *watch) close() { w.notify.Close() }

// maxWatchers bounds the watches that clients have made to ask now and then, and may have forgotten.
const maxWatchers = 256

// watchers are those watches.
type watchers struct {
	mu   sync.Mutex
	byID map[string]*watch
}

func (ws *watchers) add(id string, w *watch) error {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	if len(ws.byID) >= maxWatchers {
		return connect.NewError(connect.CodeResourceExhausted, fmt.Errorf("there are %d watchers already: remove some", maxWatchers))
	}
	if ws.byID == nil {
		ws.byID = map[string]*watch{}
	}
	ws.byID[id] = w
	return nil
}

func (ws *watchers) get(id string) (*watch, error) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	if w := ws.byID[id]; w != nil {
		return w, nil
	}
	return nil, connect.NewError(connect.CodeNotFound, fmt.Errorf("there is no watcher %q", id))
}

func (ws *watchers) remove(id string) error {
	w, err := ws.get(id)
	if err != nil {
		return err
	}
	ws.mu.Lock()
	delete(ws.byID, id)
	ws.mu.Unlock()
	w.close()
	return nil
}
