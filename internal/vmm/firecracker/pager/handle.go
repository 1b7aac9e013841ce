package pager

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sporevm/spore"
)

// Handle is a pager as the server sees it. Its methods may be called from many goroutines.
type Handle struct {
	cfg   Config
	pid   int
	child *os.Process // nil for an adopted one
	pidfd *os.File
	conn  *net.UnixConn
	gone  <-chan struct{} // closed when the process has ended

	ready    chan struct{} // closed at the first report of its state
	attached chan struct{} // closed when it serves
	done     chan struct{}

	mu       sync.Mutex
	err      error
	finished bool // done is closed
	stopping bool
	released bool
	serving  bool
	seq      int64
	answers  map[int64]chan report
}

// newHandle takes over pidfd and conn; child may be nil.
func newHandle(cfg Config, pid int, child *os.Process, pidfd int, conn *net.UnixConn) (*Handle, error) {
	f, ended, err := watchProcess(pidfd)
	if err != nil {
		if child != nil {
			killErr := child.Kill()
			_, waitErr := child.Wait()
			err = errors.Join(err, killErr, waitErr)
		}
		return nil, errors.Join(err, conn.Close())
	}
	gone := make(chan struct{})
	h := &Handle{
		cfg: cfg, pid: pid, child: child, pidfd: f, conn: conn, gone: gone,
		ready: make(chan struct{}), attached: make(chan struct{}), done: make(chan struct{}), answers: map[int64]chan report{},
	}
	go h.follow(ended, gone)
	return h, nil
}

// begin tells a new pager what to do and waits until it listens.
func (h *Handle) begin(ctx context.Context, s setup) error {
	line, err := encodeLine(order{Op: opStart, Setup: &s})
	if err != nil {
		return err
	}
	if err := h.conn.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return fmt.Errorf("pager: %w", err)
	}
	// One that has ended already says why in its log, which is better than what the write would say.
	_, writeErr := h.conn.Write(line)
	select {
	case <-h.ready:
	case <-h.done:
	case <-ctx.Done():
		return ctx.Err()
	}
	// Err waits for who closed ready, and done perhaps.
	if err := h.Err(); err != nil {
		return err
	}
	return writeErr
}

// Adopt takes over the pager that an earlier process of the server started with the same cfg. Done of one that has failed is
// closed from the start. It fails with spore.CodeNotFound when none lives; its VM, if that lives, must be ended.
func Adopt(ctx context.Context, cfg Config) (*Handle, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	conn, err := dial(filepath.Join(cfg.Dir, nameControl))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ECONNREFUSED) {
		e := spore.Errorf(spore.CodeNotFound, "no page server lives in %s", cfg.Dir).WithCause(err)
		if last := lastWords(cfg.Dir); last != "" {
			e.Message += "; it said last: " + last
		}
		return nil, e
	}
	if err != nil {
		return nil, fmt.Errorf("pager: %w", err)
	}
	who, err := peerOf(conn)
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	h, err := newHandle(cfg, who.pid, nil, who.pidfd, conn)
	if err != nil {
		return nil, err
	}
	select {
	case <-h.ready:
		return h, nil
	case <-h.done:
		if h.isReady() {
			return h, nil // it failed before, and says so
		}
		return nil, spore.Errorf(spore.CodeNotFound, "the page server in %s has just ended", cfg.Dir).WithCause(h.Err())
	case <-ctx.Done():
		return nil, errors.Join(ctx.Err(), h.Release())
	}
}

// Clean ends the pager in cfg.Dir, if one lives, and removes what it left there.
func Clean(ctx context.Context, cfg Config) error {
	h, err := Adopt(ctx, cfg)
	if spore.CodeOf(err) == spore.CodeNotFound {
		return removeSockets(cfg)
	}
	if err != nil {
		return err
	}
	return h.Stop(ctx)
}

// PID is that of the pager's process.
func (h *Handle) PID() int { return h.pid }

// Done is closed when the pager serves no more, whatever the reason. The VM, if it lives, would wait for ever for the
// first page that it lacks, and must be ended.
func (h *Handle) Done() <-chan struct{} { return h.done }

// Err says after Done why: nil when the VMM had ended or Stop was called; spore.CodeDamaged, naming the file, when what it
// serves is not what was written; spore.CodeUnreachable when the pager died; before Done it is nil.
func (h *Handle) Err() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.err
}

// Serving tells whether the VMM has connected and what it sent was found good.
func (h *Handle) Serving() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.serving && !h.finished
}

// Attached waits until the VMM has connected and what it sent was found good. It fails when it does not come to that.
func (h *Handle) Attached(ctx context.Context) error {
	select {
	case <-h.attached:
		return nil
	case <-h.done:
	case <-ctx.Done():
		return ctx.Err()
	}
	if err := h.Err(); err != nil {
		return err
	}
	return spore.Errorf(spore.CodeConflict, "the page server of %s has ended before its VM came", h.cfg.ID)
}

// follow reads reports until the connection ends.
func (h *Handle) follow(ended <-chan struct{}, gone chan<- struct{}) {
	how := make(chan string, 1)
	go func() {
		<-ended
		status := ""
		if h.child != nil {
			if s, err := h.child.Wait(); err == nil {
				status = s.String()
			}
		}
		how <- status
		close(gone) // before the descriptor is closed, so that who finds it closed knows why
		// What it said before it ended is still there to read. If something holds the connection open, that is all.
		err := h.conn.SetReadDeadline(time.Now().Add(time.Second))
		for _, err := range []error{err, h.pidfd.Close()} {
			if err != nil && !errors.Is(err, net.ErrClosed) && !errors.Is(err, os.ErrClosed) {
				h.cfg.Logger.Warn("end of a page server", "vm", h.cfg.ID, "error", err)
			}
		}
	}()
	in := newLines(h.conn)
	var err error
	for err == nil {
		var r report
		if err = in.next(&r); err == nil {
			h.hear(r)
		}
	}
	h.mu.Lock()
	released, finished := h.released, h.finished
	h.mu.Unlock()
	if released || finished {
		return
	}
	lost := spore.Errorf(spore.CodeUnreachable, "the page server of %s (process %d)", h.cfg.ID, h.pid).
		WithHint("the VM cannot go on without it and is ended; its snapshots are as they were")
	select {
	case status := <-how:
		lost.Message += " ended"
		if status != "" {
			lost.Message += ": " + status
		}
		if last := lastWords(h.cfg.Dir); last != "" {
			lost.Message += "; it said last: " + last
		}
	case <-time.After(time.Second):
		lost.Message += " cannot be spoken to any more"
		if err != io.EOF {
			lost.Cause = err
		}
	}
	h.finish(lost)
}

// hear takes one report.
func (h *Handle) hear(r report) {
	switch r.Kind {
	case reportState:
		h.mu.Lock()
		defer h.mu.Unlock()
		if !h.isReady() {
			close(h.ready)
		}
		switch {
		case r.State == stateServing:
			if !h.serving {
				close(h.attached)
			}
			h.serving = true
		case r.State == stateFailed && r.Failure != nil:
			h.finishLocked(r.Failure.err())
		case r.State == stateFailed:
			h.finishLocked(spore.Errorf(spore.CodeInternal, "the page server failed and does not say why"))
		case r.State == stateEnded:
			h.finishLocked(nil)
		}
	case reportRecorded:
		if h.cfg.HotSet != "" {
			go h.saveHotSet()
		}
	default:
		h.mu.Lock()
		defer h.mu.Unlock()
		if ch := h.answers[r.Seq]; ch != nil {
			delete(h.answers, r.Seq)
			ch <- r
		}
	}
}

func (h *Handle) finish(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.finishLocked(err)
}

func (h *Handle) finishLocked(err error) {
	if h.finished {
		return
	}
	h.finished = true
	if !h.stopping {
		h.err = err
	}
	close(h.done)
}

func (h *Handle) order(o order) error {
	line, err := encodeLine(o)
	if err == nil {
		err = h.conn.SetWriteDeadline(time.Now().Add(writeTimeout))
	}
	if err == nil {
		_, err = h.conn.Write(line)
	}
	if err != nil {
		return spore.Errorf(spore.CodeUnreachable, "the page server of %s does not listen", h.cfg.ID).WithCause(err)
	}
	return nil
}

// ask gives an order and waits for the answer.
func (h *Handle) ask(ctx context.Context, op string) (report, error) {
	ch := make(chan report, 1)
	h.mu.Lock()
	h.seq++
	seq := h.seq
	h.answers[seq] = ch
	err := h.order(order{Op: op, Seq: seq})
	h.mu.Unlock()
	if err == nil {
		select {
		case r := <-ch:
			return r, nil
		case <-h.gone:
			err = spore.Errorf(spore.CodeConflict, "the page server of %s has ended", h.cfg.ID)
		case <-ctx.Done():
			err = ctx.Err()
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.answers, seq)
	return report{}, err
}

// Stats is what the pager has done so far. It fails with spore.CodeConflict or spore.CodeUnreachable when it has ended.
func (h *Handle) Stats(ctx context.Context) (Stats, error) {
	r, err := h.ask(ctx, opStats)
	if err != nil {
		return Stats{}, err
	}
	if r.Stats == nil {
		return Stats{}, errors.New("pager: an answer without stats")
	}
	return *r.Stats, nil
}

// HotSet is what was recorded so far: what the guest has touched, in its order. nil when nothing is recorded, as when a hot
// set was given.
func (h *Handle) HotSet(ctx context.Context) (*HotSet, error) {
	r, err := h.ask(ctx, opHotSet)
	if err != nil || len(r.HotSet) == 0 {
		return nil, err
	}
	hot, err := parseHotSet(r.HotSet)
	if err != nil {
		return nil, fmt.Errorf("pager: hot set: %w", err)
	}
	return hot, nil
}

func (h *Handle) saveHotSet() {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	hot, err := h.HotSet(ctx)
	if err == nil && hot != nil {
		err = hot.Save(h.cfg.HotSet)
	}
	if err != nil {
		// The next thaw records another one.
		h.cfg.Logger.Warn("the hot set is not kept", "vm", h.cfg.ID, "error", err)
	}
}

// Stop ends the pager, by force if it must, waits for its end and removes its sockets. The VM must have ended. Idempotent.
func (h *Handle) Stop(ctx context.Context) error {
	h.mu.Lock()
	h.stopping = true
	h.mu.Unlock()
	if h.order(order{Op: opStop}) == nil {
		select {
		case <-h.gone:
		case <-time.After(stopGrace):
		case <-ctx.Done():
		}
	}
	return errors.Join(h.kill(), removeSockets(h.cfg))
}

// stopGrace is how long a pager has to end in order.
const stopGrace = 2 * time.Second

// kill ends the process and lets go of it.
func (h *Handle) kill() error {
	var err error
	if !h.isGone() {
		if err = killProcess(h.pidfd); err == nil {
			<-h.gone
		} else if h.isGone() {
			err = nil // by itself, meanwhile
		}
	}
	h.mu.Lock()
	h.stopping = true
	h.mu.Unlock()
	h.finish(nil)
	return errors.Join(err, h.letGo())
}

// Release lets go of the pager without ending it, so that a later process can adopt it.
func (h *Handle) Release() error {
	h.mu.Lock()
	h.released = true
	h.mu.Unlock()
	return h.letGo()
}

func (h *Handle) letGo() error {
	errs := []error{h.conn.Close()}
	if h.child == nil { // a child is still waited for, so that it leaves no zombie
		errs = append(errs, h.pidfd.Close())
	}
	for i, err := range errs {
		if errors.Is(err, os.ErrClosed) || errors.Is(err, net.ErrClosed) {
			errs[i] = nil
		}
	}
	return errors.Join(errs...)
}

// isReady is sure to be true after Done, if the pager reported its state at all.
func (h *Handle) isReady() bool {
	select {
	case <-h.ready:
		return true
	default:
		return false
	}
}

func (h *Handle) isGone() bool {
	select {
	case <-h.gone:
		return true
	default:
		return false
	}
}

func removeSockets(cfg Config) error {
	var errs []error
	for _, path := range []string{cfg.Socket, filepath.Join(cfg.Dir, nameControl)} {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
