// Package center is the template center: the rules of templates, snapshots, sandboxes, runtime refs and jobs. It decides
// and writes rows; nodes do the work.
//
// Every change of the world follows one order: first the rows say what is about to be (a reserved ref, a CREATING
// sandbox, a RUNNING job), then the node acts, then the rows say what is. Whatever dies in between, Start finds the
// rows and the node's own records and settles the difference.
package center

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/store"
)

// Options tune a Center; zero fields take the defaults.
type Options struct {
	Logger *slog.Logger
	// Workers is how many queued jobs run at a time. Default 2.
	Workers int
	// OperationTimeout caps snapshot, rollback, fork, pause and resume. Default 15 minutes.
	OperationTimeout time.Duration
	// Now is the clock. Default time.Now.
	Now func() time.Time
	// Hook is called at each step of each operation, named like "snapshot:frozen". Tests use it to end the process there.
	Hook func(step string)
}

// Center is the template center. Start it before use; its methods may then be called from many goroutines.
type Center struct {
	store store.Store
	node  Node
	log   *slog.Logger
	opt   Options

	sandboxes keyedMutex // serialises what happens to one sandbox
	forking   sync.Map   // ids of snapshots that a fork has made and not yet put to use
	running   sync.Map   // ids of queued jobs that run right now

	unfinished unfinished
	ending     chan struct{} // one for each sandbox that is being ended because its time is up
	notBefore  sync.Map      // when to try again to end a sandbox, by id

	life  context.Context // ends with Stop
	stop  context.CancelFunc
	loops sync.WaitGroup
}

// New puts a center on a store and a node.
func New(st store.Store, node Node, opt Options) *Center {
	if opt.Logger == nil {
		opt.Logger = slog.Default()
	}
	if opt.Workers == 0 {
		opt.Workers = 2
	}
	if opt.OperationTimeout == 0 {
		opt.OperationTimeout = 15 * time.Minute
	}
	if opt.Now == nil {
		opt.Now = time.Now
	}
	if opt.Hook == nil {
		opt.Hook = func(string) {}
	}
	c := &Center{store: st, node: node, log: opt.Logger, opt: opt, ending: make(chan struct{}, endings)}
	c.life, c.stop = context.WithCancel(context.Background())
	return c
}

// Start settles what an earlier server left behind, then begins to take jobs and to end sandboxes whose time is up.
func (c *Center) Start(ctx context.Context) error {
	c.node.OnExit(c.sandboxExited)
	if err := c.recover(ctx); err != nil {
		return err
	}
	if err := c.store.Work(c.life, c.opt.Workers, c.runJob); err != nil {
		return err
	}
	c.every(time.Second, c.endExpired)
	c.every(time.Second, c.dropEphemeral)
	c.every(time.Second, c.finishUp)
	c.every(time.Hour, c.purge)
	return nil
}

// Stop stops taking jobs and waits for those under way until ctx ends. Sandboxes go on running.
func (c *Center) Stop(ctx context.Context) error {
	err := c.store.Stop(ctx)
	c.stop()
	ended := make(chan struct{})
	go func() { c.loops.Wait(); close(ended) }()
	select {
	case <-ended:
		return err
	case <-ctx.Done():
		return errors.Join(err, fmt.Errorf("what was being done to sandboxes did not end in time: %w", ctx.Err()))
	}
}

func (c *Center) every(period time.Duration, do func(context.Context) error) {
	c.loops.Go(func() {
		tick := time.NewTicker(period)
		defer tick.Stop()
		for {
			select {
			case <-c.life.Done():
				return
			case <-tick.C:
			}
			if err := do(c.life); err != nil && c.life.Err() == nil {
				c.log.Error("periodic work", "err", err)
			}
		}
	})
}

// purge drops tombstones and remembered requests that nobody will ask for any more.
func (c *Center) purge(ctx context.Context) error {
	before := c.opt.Now().Add(-24 * time.Hour)
	return c.store.Update(ctx, func(tx store.Tx) error {
		if _, err := tx.PurgeSandboxes(before); err != nil {
			return err
		}
		_, err := tx.PurgeReplays(before)
		return err
	})
}

// replay answers the resource that an earlier request under the same key made, "" when the request is new. Another
// payload under the same key is a conflict.
func replay(tx store.Tx, key Idempotency) (string, error) {
	if key.Key == "" {
		return "", nil
	}
	r, err := tx.Replay(key.Caller, key.Key)
	if err != nil || r == nil {
		return "", err
	}
	if r.Digest != key.Digest {
		return "", spore.Errorf(spore.CodeConflict, "the idempotency key %q was used for another request", key.Key).
			WithHint("use a new key for a new request")
	}
	return r.ResourceID, nil
}

// remember stores the key of a request with what it makes, in the transaction that makes it.
func (c *Center) remember(tx store.Tx, key Idempotency, resourceID string) error {
	if key.Key == "" {
		return nil
	}
	return tx.PutReplay(store.Replay{Caller: key.Caller, Key: key.Key, Digest: key.Digest, ResourceID: resourceID, CreatedAt: c.opt.Now()})
}

// await waits until done says so, looking at every change of the rows.
func (c *Center) await(ctx context.Context, done func(tx store.Tx) (bool, error)) error {
	for {
		changed := c.store.Changes()
		var ok bool
		if err := c.store.View(ctx, func(tx store.Tx) (err error) { ok, err = done(tx); return err }); err != nil || ok {
			return err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// keyedMutex is a mutex for each key, which a caller may wait for no longer than its context.
type keyedMutex struct {
	mu    sync.Mutex
	locks map[string]chan struct{}
	users map[string]int
}

func (k *keyedMutex) lock(ctx context.Context, key string) (unlock func(), err error) {
	l := k.enter(key)
	select {
	case l <- struct{}{}:
		return func() { <-l; k.leave(key) }, nil
	case <-ctx.Done():
		k.leave(key)
		return nil, spore.Errorf(spore.CodeBusy, "another operation on %s is still under way", key).
			WithCause(ctx.Err()).WithHint("try again when it has ended")
	}
}

// tryLock is lock for a caller who does not wait.
func (k *keyedMutex) tryLock(key string) (unlock func(), ok bool) {
	l := k.enter(key)
	select {
	case l <- struct{}{}:
		return func() { <-l; k.leave(key) }, true
	default:
		k.leave(key)
		return nil, false
	}
}

func (k *keyedMutex) enter(key string) chan struct{} {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.locks == nil {
		k.locks, k.users = map[string]chan struct{}{}, map[string]int{}
	}
	l, ok := k.locks[key]
	if !ok {
		l = make(chan struct{}, 1)
		k.locks[key] = l
	}
	k.users[key]++
	return l
}

func (k *keyedMutex) leave(key string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.users[key]--; k.users[key] == 0 {
		delete(k.locks, key)
		delete(k.users, key)
	}
}

// isNotFound says whether err means that there is nothing of that id.
func isNotFound(err error) bool { return spore.CodeOf(err) == spore.CodeNotFound }

// canceled says whether err came of an ended context rather than of the work.
func canceled(err error) bool {
	return errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) || spore.CodeOf(err) == spore.CodeCanceled
}
