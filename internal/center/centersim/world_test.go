package centersim

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/center"
	"github.com/sporevm/spore/internal/node/simnode"
	"github.com/sporevm/spore/internal/store"
	"github.com/sporevm/spore/internal/store/memory"
)

// world is everything that a run consists of.
type world struct {
	*schedule
	db          *memory.Database
	cluster     *simnode.Cluster
	machines    []*simnode.Machine
	controllers []*controller
	alone       bool // one server, in one process with its machine
	calm        bool // the devil has left
	clients     clients
	born        int // controllers so far
	log         *slog.Logger
	failures    []string
}

// controller is one server process.
type controller struct {
	name    string
	store   *memory.Store
	center  *center.Center
	handles []*simnode.Handle
	life    context.Context
	kill    context.CancelFunc
	ready   atomic.Bool // it answers
	failed  atomic.Bool // its process has ended by itself
	dead    bool
	ended   chan struct{}
}

// errDevil is what the devil makes go wrong.
var errDevil = spore.Errorf(spore.CodeUnreachable, "the devil was in it")

func newWorld(seed uint64, log *slog.Logger, tell func(string, ...any)) *world {
	r := rand.New(rand.NewPCG(seed, 1))
	w := &world{schedule: &schedule{seed: seed, rand: r, met: map[string]uint64{}, tell: tell, trace: 14695981039346656037}, db: memory.New(), log: log}
	w.alone = seed%2 == 0
	w.cluster = simnode.NewCluster(simnode.ClusterOptions{Fault: w.fault})
	count := 3
	if w.alone {
		count = 1
	}
	for i := range count {
		w.machines = append(w.machines, w.cluster.New(simnode.Options{
			ID: fmt.Sprintf("n%d", i+1), MemoryMiB: 8 << 10, DiskBytes: 64 << 30, Alone: w.alone,
		}))
	}
	w.clients.init(w)
	return w
}

// fault is asked at each step of each call of a machine. In a quiet world nothing goes wrong and nobody waits.
func (w *world) fault(machine, step string) error {
	w.at(machine + " " + step)
	if w.calm {
		return nil
	}
	switch w.chance(machine+" "+step, 400) {
	case 0:
		return errDevil
	case 1:
		return spore.Errorf(spore.CodeNoSpace, "the disk is full")
	case 2:
		return simnode.ErrLost
	case 3:
		if !w.alone {
			return simnode.ErrLate
		}
	case 4:
		if !w.alone {
			return simnode.ErrTwice
		}
	}
	return nil
}

// gated is a store at whose door one waits.
type gated struct {
	*memory.Store
	w *world
	c *controller
}

func (g gated) Update(ctx context.Context, fn func(store.Tx) error) error {
	label := g.c.name + " " + g.w.caller()
	if request, ok := ctx.Value(requestKey{}).(string); ok {
		label += " for " + request
	}
	g.w.at(label)
	if !g.w.calm && g.w.chance(label, 500) == 0 {
		return spore.Errorf(spore.CodeNoSpace, "the database's disk is full")
	}
	return g.Store.Update(ctx, fn)
}

// requestKey is under which a context says whose request it is about.
type requestKey struct{}

// via is a controller's way to a machine. Its first step is told apart from another controller's.
type via struct {
	*simnode.Handle
	w *world
	c *controller
}

func (v via) Report(ctx context.Context) (*spore.NodeReport, error) {
	v.w.at(v.c.name + " asks " + v.ID())
	return v.Handle.Report(ctx)
}

// caller names the function of the center that asks for a transaction. Names tell those who wait at the same time apart,
// so that it does not matter in which order they came.
func (s *schedule) caller() string {
	s.mu.Lock()
	open := s.open
	s.mu.Unlock()
	if open {
		return ""
	}
	var pcs [8]uintptr
	frames := runtime.CallersFrames(pcs[:runtime.Callers(3, pcs[:])])
	for {
		f, more := frames.Next()
		name := f.Function[strings.LastIndexByte(f.Function, '/')+1:]
		if !more || !strings.Contains(name, ").update") && !strings.HasSuffix(name, ").take") {
			return name
		}
	}
}

// start brings up a server.
func (w *world) start() *controller {
	w.born++
	c := &controller{name: fmt.Sprintf("c%d", w.born), ended: make(chan struct{})}
	c.life, c.kill = context.WithCancel(context.Background())
	c.store = w.db.Open(memory.Options{Controller: c.name, Alone: w.alone, Logger: w.log})
	var nodes []center.Node
	for _, m := range w.machines {
		h := m.Connect()
		c.handles = append(c.handles, h)
		nodes = append(nodes, via{h, w, c})
	}
	c.center = center.New(gated{c.store, w, c}, nodes, center.Options{
		Controller: c.name, Alone: w.alone, Logger: w.log.With("controller", c.name),
		OnFenced: func() { c.failed.Store(true) },
	})
	w.controllers = append(w.controllers, c)
	go func() {
		defer close(c.ended)
		if err := c.center.Start(c.life); err != nil {
			w.log.Info("a start failed", "controller", c.name, "err", err)
			c.failed.Store(true)
		}
		c.ready.Store(true)
		<-c.life.Done()
		over, cancel := context.WithCancel(context.Background())
		cancel()
		_ = c.center.Stop(over) // what is dead has nothing to say
	}()
	return c
}

// die ends a server as kill -9 does. Alone, its machine's process is the same one.
func (w *world) die(c *controller) {
	w.note("kill " + c.name)
	c.dead = true
	c.store.Kill()
	for _, h := range c.handles {
		h.Close()
	}
	if w.alone {
		w.machines[0].Crash()
	}
	c.kill()
}

// supervise starts servers anew that have ended by themselves.
func (w *world) supervise() {
	for _, c := range w.controllers {
		if !c.dead && c.failed.Load() {
			w.die(c)
			w.start()
		}
	}
}

// living lists the servers that can be asked.
func (w *world) living() (list []*controller) {
	for _, c := range w.controllers {
		if !c.dead && c.ready.Load() && !c.failed.Load() {
			list = append(list, c)
		}
	}
	return list
}

// run plays one seed. It is called inside a bubble of virtual time.
func (w *world) run() {
	w.start()
	if !w.alone {
		time.Sleep(1_234_567)
		w.start()
	}
	steps := 250 + w.rand.IntN(500)
	for i := 0; i < steps && len(w.failures) == 0; i++ {
		w.supervise()
		w.devil()
		w.clients.act()
		w.step()
		w.check()
	}
	w.settle()
	w.end()
}

// devil does something bad now and then.
func (w *world) devil() {
	m := w.machines[w.rand.IntN(len(w.machines))]
	switch w.rand.IntN(900) {
	case 0, 1, 2:
		if alive := w.living(); len(alive) > 0 {
			w.die(alive[w.rand.IntN(len(alive))])
			w.start()
		}
	case 3:
		w.note("crash " + m.ID())
		if !w.alone {
			m.Crash()
		}
	case 4:
		w.note("power " + m.ID())
		if !w.alone {
			m.PowerLoss()
		}
	case 5, 6:
		if !w.alone {
			w.note(fmt.Sprintf("reach %s %v", m.ID(), !m.Reachable()))
			m.SetReachable(!m.Reachable())
		}
	case 7:
		for _, vm := range m.Audit().VMs {
			if vm.SandboxID != "" && vm.Running && !vm.Starting {
				w.note("end " + vm.ID)
				go m.EndVM(vm.SandboxID, vm.Generation, "it crashed")
				break
			}
		}
	case 8:
		if frozen := m.Audit().Frozen; len(frozen) > 0 {
			f := frozen[w.rand.IntN(len(frozen))]
			w.note("lose " + f.ID)
			m.HarmFrozen(f.ID, simnode.Loss)
		}
	case 9:
		w.note("fill " + m.ID())
		m.FillTo(60 + w.rand.IntN(38))
	case 10:
		w.note("empty " + m.ID())
		m.Fill(0)
	case 11:
		w.note("unplug " + m.ID())
		m.SetNetworks(spore.NetworkIsolated) // and clients ask for user
	case 12:
		w.note("plug " + m.ID())
		m.SetNetworks(spore.NetworkUser)
	}
	if late := m.Late(); len(late) > 0 && w.rand.IntN(20) == 0 {
		i := w.rand.IntN(len(late))
		w.note("deliver " + late[i])
		go m.Deliver(i) // its caller has long been told something else
	}
}

// settle sends the devil away and waits until everything has come to rest.
func (w *world) settle() {
	w.calm = true
	for _, m := range w.machines {
		m.SetReachable(true)
		m.SetNetworks(spore.NetworkUser)
		m.Fill(0)
		for len(m.Late()) > 0 {
			go m.Deliver(0)
			for range 50 {
				w.step()
			}
		}
	}
	w.release()
	for round := range 200 {
		w.supervise()
		time.Sleep(30 * time.Second)
		synctest.Wait()
		w.check()
		if round >= 6 && w.atRest() { // every loop has had its turn by then
			return
		}
	}
}

func (w *world) end() {
	w.checkRest()
	if w.seed%32 < 2 || os.Getenv("SPORE_SIM_GARBAGE") != "" {
		w.checkGarbage()
	}
	for _, c := range w.controllers {
		c.dead = true
		c.kill()
		<-c.ended
		c.store.Kill()
	}
	w.clients.wait()
}

func (w *world) failf(format string, args ...any) {
	w.failures = append(w.failures, fmt.Sprintf(format, args...))
}

// play runs one seed and answers what was wrong, and the run's fingerprint.
func play(t *testing.T, seed uint64, verbose bool) (failures []string, trace uint64) {
	synctest.Test(t, func(t *testing.T) {
		log := slog.New(slog.NewTextHandler(io.Discard, &slog.HandlerOptions{Level: slog.Level(100)}))
		var tell func(string, ...any)
		if verbose {
			log = slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
			tell = t.Logf
		}
		w := newWorld(seed, log, tell)
		w.run()
		failures, trace = w.failures, w.trace
	})
	return failures, trace
}

var errLost = errors.New("the answer never came")
