package daemon

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"

	"github.com/sporevm/spore/internal/frozen"
	"github.com/sporevm/spore/internal/vmm"
	"github.com/sporevm/spore/internal/vmm/firecracker"
	"github.com/sporevm/spore/internal/vmm/firecracker/pager"
)

// Pager is the page server of one VM, in the process that an engine made for it. It answers the exit code.
func Pager(args []string) int {
	return pager.Main(args, func(base pager.Source, names []string, files []*os.File) (pager.Source, error) {
		return frozen.OpenPages(base, names, files)
	})
}

// pagers starts page servers for the Firecracker engine. It implements firecracker.Pager.
type pagers struct {
	// choose picks the backend for layers over a base, in bytes that are there.
	choose func(layers, base int64) pager.Backend
	log    *slog.Logger
}

var _ firecracker.Pager = pagers{}

func (p pagers) Wants(base string, patches vmm.Patches) bool {
	return p.choose(layerBytes(patches), allocated(base)) == pager.BackendUffd
}

// typicalLayer is taken for patches whose size nobody knows before they are read.
const typicalLayer = 24 << 20

func layerBytes(patches vmm.Patches) int64 {
	if patches == nil {
		return 0
	}
	layered, ok := patches.(pager.Layered)
	if !ok {
		return typicalLayer
	}
	var n int64
	_, files := layered.LayerFiles()
	for _, f := range files {
		if fi, err := f.Stat(); err == nil {
			n += fi.Size()
		}
	}
	return n
}

// allocated is what of a file is there. One that cannot be looked at is refused by whoever opens it.
func allocated(path string) int64 {
	fi, err := os.Stat(path)
	if err != nil {
		return 0
	}
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		return st.Blocks * 512
	}
	return fi.Size()
}

func (p pagers) Start(ctx context.Context, s firecracker.PagerSpec) (_ firecracker.PagerProcess, err error) {
	spec, err := pager.NewSpec(ctx, s.Memory, s.Size, s.Patches, s.Dir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, spec.Close()) }()
	cfg := p.config(s.Dir)
	cfg.ID, cfg.Socket, cfg.HotSet = s.ID, s.Socket, hotSet(s)
	if s.UID >= 0 {
		cfg.UID, cfg.GID = s.UID, s.UID
	}
	h, err := pager.Start(ctx, cfg, spec)
	if err != nil {
		return nil, err
	}
	return pagerProcess{h}, nil
}

// hotSet is where the hot set of what is served is kept; "" when that is not a whole frozen memory.
func hotSet(s firecracker.PagerSpec) string {
	if s.Patches == nil {
		return frozen.HotSetPath(s.Memory)
	}
	if layered, ok := s.Patches.(pager.Layered); ok {
		if _, files := layered.LayerFiles(); len(files) > 0 {
			return frozen.HotSetPath(files[len(files)-1].Name())
		}
	}
	return ""
}

func (p pagers) Adopt(ctx context.Context, dir string) (firecracker.PagerProcess, error) {
	h, err := pager.Adopt(ctx, p.config(dir))
	if err != nil {
		return nil, err
	}
	return pagerProcess{h}, nil
}

func (p pagers) Clean(ctx context.Context, dir string) error { return pager.Clean(ctx, p.config(dir)) }

// config is that of a page server that is there already. The socket that its VM connected to is in the VM's root, and goes
// with that; the name here is for none.
func (p pagers) config(dir string) pager.Config {
	return pager.Config{
		ID: filepath.Base(filepath.Dir(dir)), Dir: dir, Socket: filepath.Join(dir, "root", "pager.sock"), UID: os.Geteuid(), GID: os.Getegid(),
		Logger: p.log,
	}
}

// pagerProcess is a pager as the engine sees it.
type pagerProcess struct{ *pager.Handle }

func (p pagerProcess) Kill(ctx context.Context) error { return p.Stop(ctx) }
