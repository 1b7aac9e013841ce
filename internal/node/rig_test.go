package node

import (
	"context"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/frozen"
	"github.com/sporevm/spore/internal/image"
	"github.com/sporevm/spore/internal/kernel"
	"github.com/sporevm/spore/internal/testbed"
	"github.com/sporevm/spore/internal/vmm"
)

// rig is a node on a directory of its own, which survives the node.
type rig struct {
	*Node
	dir    string
	engine vmm.Engine
	pool   int
	cables *cables // nil: it has no networks, and bounds no processor time
	disk   *space  // what the guard takes the disk for; nil: what it is
}

func newRig(t *testing.T, engine vmm.Engine, pool int) *rig {
	t.Helper()
	return newRigIn(t, t.TempDir(), engine, pool)
}

func newRigIn(t *testing.T, dir string, engine vmm.Engine, pool int) *rig {
	t.Helper()
	r := &rig{dir: dir, engine: engine, pool: pool}
	b := testbed.Bundle(t)
	must(t, os.CopyFS(filepath.Join(r.dir, "kernels", b.ID), os.DirFS(filepath.Dir(b.VmlinuzPath()))))
	r.open(t)
	t.Cleanup(func() {
		ctx := context.Background() // the test's own has ended
		for _, m := range r.list() {
			must(t, r.end(ctx, m))
		}
		must(t, r.Close(ctx))
		if left, err := os.ReadDir(filepath.Join(r.dir, "vms")); err != nil || len(left) > 0 {
			t.Errorf("VMs that are left: %v, %v", left, err)
		}
	})
	return r
}

// list answers the VMs that the node knows.
func (r *rig) list() (all []*machine) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, m := range r.machines {
		all = append(all, m)
	}
	return all
}

// open opens a node as a server does that starts.
func (r *rig) open(t *testing.T) {
	t.Helper()
	quiet := slog.New(slog.NewTextHandler(io.Discard, nil))
	if testing.Verbose() {
		quiet = slog.New(slog.NewTextHandler(t.Output(), nil))
	}
	images, err := image.Open(r.dir, image.Options{Logger: quiet})
	must(t, err)
	states, err := frozen.Open(filepath.Join(r.dir, "frozen"), frozen.Options{Log: quiet})
	must(t, err)
	opt := Options{
		ID: "here", DataDir: r.dir, Engine: r.engine, Images: images, Frozen: states, Pool: r.pool, Logger: quiet,
		Kernels: kernel.Open(filepath.Join(r.dir, "kernels")),
	}
	if r.cables != nil {
		opt.Networks, opt.Governor = map[spore.NetworkMode]Networks{spore.NetworkUser: r.cables}, governor{r.cables}
	}
	r.Node, err = Open(t.Context(), opt)
	must(t, err)
	really := r.guard.measure
	r.guard.measure = func() (space, error) {
		if r.disk != nil {
			return *r.disk, nil
		}
		return really()
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantCode(t testing.TB, err error, code spore.Code) {
	t.Helper()
	if got := spore.CodeOf(err); got != code {
		t.Fatalf("the error is %q (%v), want %q", got, err, code)
	}
}

// eventually waits for what a goroutine brings about.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
	}
}

// template builds an image and answers a template of it that is not baked yet.
func (r *rig) template(t *testing.T, ref string, size spore.Resources) *spore.Template {
	t.Helper()
	kernel, err := r.ResolveKernel(t.Context(), "")
	must(t, err)
	a, err := r.BuildArtifact(t.Context(), spore.ArtifactSpec{Reference: ref}, func(spore.JobPhase, spore.PullProgress) {})
	must(t, err)
	return &spore.Template{
		ID: spore.NewTemplateID(), Kind: spore.KindTemplate, Image: a.Image, ArtifactID: a.ID, KernelID: kernel, Resources: size, Process: a.Process,
	}
}

func (r *rig) baked(t *testing.T, ref string, size spore.Resources) *spore.Template {
	t.Helper()
	tpl := r.template(t, ref, size)
	_, err := r.Bake(t.Context(), tpl, tpl.ID, func(line string) { t.Log(line) })
	must(t, err)
	return tpl
}

func (r *rig) start(t *testing.T, frozenID string) *spore.Sandbox {
	t.Helper()
	s := &spore.Sandbox{ID: spore.NewSandboxID(), Generation: 1, TemplateID: frozenID}
	must(t, r.Start(t.Context(), s, frozenID))
	return s
}

// flip changes a byte of a file.
func flip(t *testing.T, path string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	must(t, err)
	defer f.Close()
	b := make([]byte, 1)
	_, err = f.ReadAt(b, 5000)
	must(t, err)
	b[0] ^= 1
	_, err = f.WriteAt(b, 5000)
	must(t, err)
}
