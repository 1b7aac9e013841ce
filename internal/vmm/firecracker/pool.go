package firecracker

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/internal/vmm"
)

// pool keeps processes that are started and have nothing loaded. Each waits in a working directory of its own, which is
// moved to the VM that takes it. They are for VMs whose network device, if any, leads nowhere: a process cannot move to
// another network namespace.
type pool struct {
	eng *Engine
	dir string
	cap int

	mu      sync.Mutex
	ready   []*jail
	filling bool
	failed  time.Time // when starting one last failed
	closed  bool
	fills   sync.WaitGroup
	cleared bool // of what an earlier server had left; of the one that fills
}

func newPool(e *Engine) *pool {
	return &pool{eng: e, dir: filepath.Join(e.opts.StateDir, "firecracker-pool"), cap: e.opts.Pool}
}

// failurePause is how long the pool waits before it tries again to start a process after that has failed.
const failurePause = 10 * time.Second

// pooledFileSize is how large a file a process may write that was started before it was known for what.
const pooledFileSize = 256 << 30

// take moves a waiting process of the binary to work; nil when there is none. Whoever takes one sets off its
// replacement.
func (p *pool) take(b *Binary, work string, nic *vmm.NIC, fileSize int64) (*jail, error) {
	if p.cap == 0 {
		return nil, nil
	}
	p.fill(b)
	if nic != nil && nic.Tap != "" || fileSize > pooledFileSize {
		return nil, nil
	}
	for {
		j := p.pop(b)
		if j == nil {
			return nil, nil
		}
		err := p.move(j, work)
		if err == nil {
			return j, nil
		}
		if endErr := p.discard(j); endErr != nil {
			return nil, errors.Join(err, endErr)
		}
		if !errors.Is(err, errGone) && !errors.Is(err, unix.EXDEV) {
			return nil, err
		}
	}
}

func (p *pool) pop(b *Binary) *jail {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, j := range p.ready {
		if j.binary.Firecracker == b.Firecracker && j.binary.mtime == b.mtime {
			p.ready = append(p.ready[:i], p.ready[i+1:]...)
			return j
		}
	}
	return nil
}

// move makes work the directory of a waiting process.
func (p *pool) move(j *jail, work string) error {
	if j.proc.ended() {
		return errGone
	}
	if err := newWork(work); err != nil { // for its refusals, and to clear away what is old
		return err
	}
	if err := unix.Rename(j.work, work); err != nil { // onto the empty directory, which os.Rename refuses
		return errors.Join(fmt.Errorf("firecracker: move a waiting process: %w", err), os.Remove(work))
	}
	j.work = work // what writes its logs holds it open
	return nil
}

// fill starts processes in the background until the pool is full.
func (p *pool) fill(b *Binary) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || p.filling || time.Since(p.failed) < failurePause {
		return
	}
	p.filling = true
	p.fills.Go(func() {
		err := p.top(b)
		p.mu.Lock()
		defer p.mu.Unlock()
		p.filling = false
		if err != nil {
			p.failed = time.Now()
			p.eng.log.Warn("no Firecracker can be started ahead", "error", err)
		}
	})
}

// top fills the pool up. The first time it ends what an earlier server has left there.
func (p *pool) top(b *Binary) error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*startTimeLimit)
	defer cancel()
	if !p.cleared { // only before there is anything of its own
		if err := p.clear(ctx); err != nil {
			return err
		}
		p.cleared = true
	}
	for {
		p.mu.Lock()
		done := p.closed || len(p.ready) >= p.cap
		p.mu.Unlock()
		if done {
			return nil
		}
		j, err := p.start(ctx, b)
		if err != nil {
			return err
		}
		p.mu.Lock()
		p.ready = append(p.ready, j)
		p.mu.Unlock()
	}
}

func (p *pool) start(ctx context.Context, b *Binary) (*jail, error) {
	work := filepath.Join(p.dir, newJailID())
	if err := newWork(work); err != nil {
		return nil, err
	}
	j, err := p.eng.launch(ctx, b, work, nil, pooledFileSize)
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(work))
	}
	r, err := j.record()
	if err == nil {
		err = r.write(work)
	}
	if err != nil {
		return nil, errors.Join(err, p.discard(j))
	}
	return j, nil
}

// clear ends and removes what does not belong to this pool: an earlier server's, and what has ended.
func (p *pool) clear(ctx context.Context) error {
	if err := os.MkdirAll(p.dir, 0o700); err != nil {
		return fmt.Errorf("firecracker: %w", err)
	}
	entries, err := os.ReadDir(p.dir)
	if err != nil {
		return fmt.Errorf("firecracker: %w", err)
	}
	ours := map[string]bool{}
	p.mu.Lock()
	for _, j := range p.ready {
		ours[filepath.Base(j.work)] = true
	}
	p.mu.Unlock()
	var errs []error
	for _, e := range entries {
		if ours[e.Name()] {
			continue
		}
		work := filepath.Join(p.dir, e.Name())
		if err := p.eng.cleanWork(ctx, work); err != nil {
			errs = append(errs, err)
			continue
		}
		errs = append(errs, os.RemoveAll(work))
	}
	return errors.Join(errs...)
}

func (p *pool) discard(j *jail) error { return errors.Join(j.end(), os.RemoveAll(j.work)) }

// close ends all that wait.
func (p *pool) close() error {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.fills.Wait()
	p.mu.Lock()
	ready := p.ready
	p.ready = nil
	p.mu.Unlock()
	var errs []error
	for _, j := range ready {
		errs = append(errs, p.discard(j))
	}
	if p.cap > 0 {
		if err := os.Remove(p.dir); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTEMPTY) {
			errs = append(errs, fmt.Errorf("firecracker: %w", err))
		}
	}
	return errors.Join(errs...)
}
