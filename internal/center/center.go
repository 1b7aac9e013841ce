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
	"hash/fnv"
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
	// OperationTimeout caps create, snapshot, rollback, fork, pause and resume. Default 15 minutes.
	OperationTimeout time.Duration
	// Controller is this center's id among those that share the store. Default: a fresh one.
	Controller string
	// Predecessor is the id of a controller that is known to be dead: it is fenced at the start.
	Predecessor string
	// Alone says that no other controller uses the store: whatever was at work before is dead.
	Alone bool
	// OnFenced is called when another controller has declared this one dead. Its center has stopped working then.
	OnFenced func()
	// Retention removes old snapshots by itself; zero: none. Quota bounds how much may be made; zero: unbounded.
	Retention Retention
	Quota     Quota
	// VisitEvery is how often nodes are asked how they are. Default 10 seconds.
	VisitEvery time.Duration
	// NodeTimeout is how long a node may be silent before it counts as unreachable. Default 30 seconds.
	NodeTimeout time.Duration
	// Now is the clock. Default time.Now.
	Now func() time.Time
	// Hook is called at each step of each operation, named like "snapshot:frozen". Tests use it to end the process there.
	Hook func(step string)
}

// Center is the template center. Start it before use; its methods may then be called from many goroutines.
type Center struct {
	store    store.Store
	fleet    *fleet
	replicas replicaCache
	meters   meters
	log      *slog.Logger
	opt      Options

	sandboxes keyedMutex // serialises what happens to one sandbox
	forking   sync.Map   // ids of snapshots that a fork has made and not yet put to use
	running   sync.Map   // ids of queued jobs that run right now

	unfinished unfinished
	ending     chan struct{} // one for each sandbox that is being ended because its time is up
	notBefore  sync.Map      // when to try again to end a sandbox, by id

	planned struct { // what the last look at all templates was about
		sync.Mutex
		nodes string
		at    time.Time
		dirty bool
	}

	held sync.Map // snapshots whose sandboxes stand still until they are released, by id

	fencedOnce sync.Once
	pulse      pulse

	started int             // loops
	life    context.Context // ends with Stop
	stop    context.CancelFunc
	loops   sync.WaitGroup
}

// New puts a center on a store and the nodes that it can ask. More may Join later.
func New(st store.Store, nodes []Node, opt Options) *Center {
	if opt.Logger == nil {
		opt.Logger = slog.Default()
	}
	if opt.Workers == 0 {
		opt.Workers = 2
	}
	if opt.OperationTimeout == 0 {
		opt.OperationTimeout = 15 * time.Minute
	}
	if opt.Controller == "" {
		opt.Controller = NewControllerID()
	}
	if opt.VisitEvery == 0 {
		opt.VisitEvery = 10 * time.Second
	}
	if opt.NodeTimeout == 0 {
		opt.NodeTimeout = 30 * time.Second
	}
	if opt.Now == nil {
		opt.Now = time.Now
	}
	if opt.Hook == nil {
		opt.Hook = func(string) {}
	}
	c := &Center{store: st, fleet: newFleet(nodes), log: opt.Logger, opt: opt, ending: make(chan struct{}, endings)}
	c.life, c.stop = context.WithCancel(context.Background())
	return c
}

// Start settles what dead controllers left behind, then begins to take jobs, to end sandboxes whose time is up and to keep
// replicas where they are wanted.
func (c *Center) Start(ctx context.Context) (err error) {
	defer func() {
		if err != nil {
			c.stop()
		}
	}()
	if err := c.enrol(ctx); err != nil {
		return err
	}
	c.every(beatEvery, c.beat) // what follows may take longer than a silence may
	if err := c.readNodes(ctx); err != nil {
		return err
	}
	if c.opt.Alone { // nothing that the rows say is under way is
		if err := c.settleCreating(ctx); err != nil {
			return err
		}
	}
	for _, id := range c.fleet.ids() {
		n, err := c.on(id)
		if err != nil {
			return err
		}
		n.OnExit(c.sandboxExited)
		if err := c.visit(ctx, n); err != nil {
			return err
		}
	}
	if err := c.settleOrphans(ctx); err != nil {
		return err
	}
	for _, id := range c.fleet.ids() {
		if n, err := c.on(id); err == nil {
			if err := c.forgetStrays(ctx, n); err != nil && spore.CodeOf(err) != spore.CodeUnreachable {
				return err
			}
		}
	}
	if err := c.store.Work(c.life, c.opt.Workers, c.runJob); err != nil {
		return err
	}
	c.every(beatEvery, c.fenceSilent)
	c.every(beatEvery, c.settleOrphans)
	c.every(time.Second, c.lead(c.endExpired))
	c.every(time.Second, c.lead(c.dropEphemeral))
	c.every(time.Second, c.finishUp)
	c.every(c.opt.VisitEvery, c.visitAll)
	c.every(c.opt.VisitEvery, c.lead(c.keepReplicas))
	c.every(time.Minute, c.lead(c.tidy))
	c.every(time.Hour, c.lead(c.purge))
	return nil
}

// tidy removes what is not wanted any more: strays, what forgotten nodes had, what retention policies no longer keep, artifacts
// that nothing uses.
func (c *Center) tidy(ctx context.Context) error {
	var errs []error
	for _, id := range c.fleet.ids() {
		if n, err := c.on(id); err == nil {
			errs = append(errs, c.forgetStrays(ctx, n), c.verifyReplicas(ctx, n))
		}
	}
	return errors.Join(append(errs, c.finishForgetting(ctx), c.applyRetention(ctx), c.sweepArtifacts(ctx))...)
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

// apart is how far the loops of a center start from each other, so that they do not all come for the rows at once. Those of another
// center that starts at the same time are off by up to a millisecond.
const apart = 7 * time.Millisecond

func (c *Center) phase() time.Duration {
	h := fnv.New32a()
	h.Write([]byte(c.opt.Controller))
	return time.Duration(c.started)*apart + time.Duration(h.Sum32()%uint32(time.Millisecond))
}

// every runs do again and again until the center stops.
func (c *Center) every(period time.Duration, do func(context.Context) error) {
	c.started++
	phase := c.phase()
	c.loops.Go(func() {
		select {
		case <-c.life.Done():
			return
		case <-time.After(phase):
		}
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
	return c.update(ctx, func(tx store.Tx) error {
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

// within is ctx for an operation whose caller waits: it ends when the operation has taken longer than it may.
func (c *Center) within(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, c.opt.OperationTimeout, errOverran)
}

var errOverran = errors.New("the operation took longer than it may")

// overran is err, or that the time of an operation was up when that is what ended it.
func (c *Center) overran(ctx context.Context, err error) error {
	if context.Cause(ctx) != errOverran || !canceled(err) {
		return err
	}
	return spore.Errorf(spore.CodeUnreachable, "it was not done within %s, and was ended", c.opt.OperationTimeout).WithCause(err).
		WithHint("nothing has come of it; try again, or allow more time: spore serve --operation-timeout")
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
			WithCause(ctx.Err()).WithHint("try again when it has ended").Because(spore.ReasonInProgress)
	}
}

// busy says whether somebody holds the lock of a key.
func (k *keyedMutex) busy(key string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.locks[key]) > 0
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
