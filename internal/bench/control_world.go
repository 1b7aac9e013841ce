package bench

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/center"
	"github.com/sporevm/spore/internal/node/simnode"
	"github.com/sporevm/spore/internal/store"
)

// controlWorld is a center on a database, with machines that are a model.
type controlWorld struct {
	cfg ControlConfig
	dir string
	db  database

	store    store.Store
	center   *center.Center
	few      *spore.Template // on fewMachines of the machines
	everyone *spore.Template // on all of them
}

// fewMachines is how many machines the template of the ordinary creates is on.
const fewMachines = 10

func (w *controlWorld) say(format string, args ...any) {
	fmt.Fprintf(w.cfg.Out, format+"\n", args...) // what cannot be said is not worth an end
}

// serving runs a center on all machines, with a template on all of them and one on a few, and do with it.
func (w *controlWorld) serving(ctx context.Context, do func(context.Context) error) (err error) {
	id := center.NewControllerID()
	if w.store, err = w.db.open(ctx, id, w.cfg.Logger); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.store.Close()) }()
	cluster := simnode.NewCluster(simnode.ClusterOptions{})
	nodes := make([]center.Node, w.cfg.Machines)
	for i := range nodes {
		// So large that the run does not fill them: what is measured is not what happens when they are full.
		nodes[i] = cluster.New(simnode.Options{
			ID: fmt.Sprintf("n%05d", i+1), Address: fmt.Sprintf("10.%d.%d.%d", i>>16&255, i>>8&255, i&255),
			VCPUs: 256, MemoryMiB: 8 << 20, DiskBytes: 1 << 50,
		}).Connect()
	}
	w.center = center.New(w.store, nodes, center.Options{Logger: w.cfg.Logger, Workers: 16, Controller: id, Alone: w.db.alone()})
	w.say("%d machines join", len(nodes))
	if err := w.center.Start(ctx); err != nil {
		return err
	}
	defer func() {
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		err = errors.Join(err, w.center.Stop(end))
	}()
	if w.few, err = w.template(ctx, "few", min(fewMachines, len(nodes))); err != nil {
		return err
	}
	if w.everyone, err = w.template(ctx, "everyone", len(nodes)); err != nil {
		return err
	}
	return do(ctx)
}

// template builds one and waits until it is on so many machines.
func (w *controlWorld) template(ctx context.Context, name string, machines int) (*spore.Template, error) {
	began := time.Now()
	t, _, err := w.center.BuildTemplate(ctx, center.Idempotency{}, center.BuildRequest{
		Name: name, Image: "registry.example/app:1", Resources: spore.Resources{VCPUs: 1, MemoryMiB: 128, DiskMiB: 64},
		Replicas: spore.ReplicaPolicy{Min: machines, Max: machines, Pinned: true},
	})
	if err != nil {
		return nil, fmt.Errorf("build a template: %w", err)
	}
	for {
		d, err := w.center.TemplateDetails(ctx, t.ID)
		if err != nil {
			return nil, err
		}
		ready := 0
		for _, r := range d.Replicas {
			if r.Status == spore.ReplicaReady {
				ready++
			}
		}
		if ready >= machines {
			w.say("template %s is on %d machines, after %.1f s", name, ready, time.Since(began).Seconds())
			return d.Template, nil
		}
		if d.Template.Status == spore.TemplateFailed {
			return nil, spore.Errorf(spore.CodeInternal, "the template failed: %s", d.Template.LastError)
		}
		if err := rest(ctx, 100*time.Millisecond); err != nil {
			return nil, err
		}
	}
}

// slice is what callers got done in a while.
type slice struct {
	rate     float64       // a second, of all together
	spent    time.Duration // of the processors' time, by this process
	took     []time.Duration
	failures []error
}

// spent is the processors' time that this process has had.
func spent() time.Duration {
	var use unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &use); err != nil {
		return 0 // it cannot fail for these arguments
	}
	return time.Duration(use.Utime.Nano() + use.Stime.Nano())
}

// together has so many callers do the same again and again for a while, once at least. A caller whose call fails stops.
func together(ctx context.Context, callers int, d time.Duration, do func(context.Context) error) slice {
	var (
		all   sync.WaitGroup
		mu    sync.Mutex
		out   slice
		began = time.Now()
		had   = spent()
	)
	for range callers {
		all.Go(func() {
			var took []time.Duration
			var failure error
			for {
				start := time.Now()
				if failure = do(ctx); failure != nil {
					break
				}
				took = append(took, time.Since(start))
				if time.Since(began) >= d {
					break
				}
			}
			mu.Lock()
			defer mu.Unlock()
			out.took = append(out.took, took...)
			if failure != nil {
				out.failures = append(out.failures, failure)
			}
		})
	}
	all.Wait()
	out.rate, out.spent = float64(len(out.took))/time.Since(began).Seconds(), spent()-had
	return out
}

// keep puts what a slice brought into the series of rates and, if there is one, of times.
func (s slice) keep(rates, times *Series) {
	if len(s.took) > 0 {
		rates.add(s.rate)
	}
	if times != nil {
		for _, d := range s.took {
			times.took(d)
		}
	}
	for _, err := range s.failures {
		rates.failed(err)
	}
}

func (w *controlWorld) path(name string) string { return filepath.Join(w.dir, name) }
