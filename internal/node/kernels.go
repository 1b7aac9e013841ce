package node

import (
	"context"
	"maps"
	"slices"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/frozen"
	"github.com/sporevm/spore/internal/kernel"
)

// Kernel is an installed kernel bundle and who needs it.
type Kernel struct {
	Bundle  *kernel.Bundle
	Default bool // the newest, which builds take unless told otherwise
	InUseBy int  // frozen states that can only be thawed with it
}

// Kernels lists the installed kernel bundles.
func (n *Node) Kernels(ctx context.Context) ([]Kernel, error) {
	bundles, err := n.opt.Kernels.List()
	if err != nil {
		return nil, err
	}
	users, err := n.kernelUsers(ctx)
	if err != nil {
		return nil, err
	}
	newest, err := n.opt.Kernels.Default()
	if err != nil && !isNotFound(err) {
		return nil, err
	}
	list := make([]Kernel, len(bundles))
	for i, b := range bundles {
		list[i] = Kernel{Bundle: b, Default: newest != nil && newest.ID == b.ID, InUseBy: len(users[b.ID])}
	}
	return list, nil
}

// kernelUsers says which frozen states and running VMs stand on which bundle.
func (n *Node) kernelUsers(ctx context.Context) (map[string][]string, error) {
	return n.users(ctx, func(s frozen.Shape) string { return s.Kernel })
}

// users says which frozen states and running VMs stand on what, by the id that on answers. Frozen states come before
// VMs, which people do not know by these names.
func (n *Node) users(ctx context.Context, on func(frozen.Shape) string) (map[string][]string, error) {
	shapes, err := n.shapes(ctx)
	users := map[string][]string{}
	for _, id := range slices.Sorted(maps.Keys(shapes)) {
		users[on(shapes[id])] = append(users[on(shapes[id])], id)
	}
	return users, err
}

// ResolveKernel answers the id of a kernel bundle; "" asks for the newest.
func (n *Node) ResolveKernel(ctx context.Context, id string) (string, error) {
	var b *kernel.Bundle
	var err error
	if id == "" {
		if b, err = n.opt.Kernels.Default(); isNotFound(err) {
			return "", spore.Errorf(spore.CodeConflict, "no kernel bundle is installed").WithHint("install one: spore kernel install")
		}
	} else {
		b, err = n.opt.Kernels.Get(id)
	}
	if err != nil {
		return "", err
	}
	return b.ID, nil
}

// InstallKernel installs a kernel bundle and makes it the default.
func (n *Node) InstallKernel(ctx context.Context, src kernel.Source, report func(string)) (*kernel.Bundle, error) {
	return n.opt.Kernels.Install(ctx, src, report)
}

// RemoveKernel removes a bundle that nothing was frozen with.
func (n *Node) RemoveKernel(ctx context.Context, id string) error {
	if _, err := n.opt.Kernels.Get(id); err != nil {
		return err
	}
	held, err := n.holds.unlessHeld(id, func() error {
		users, err := n.kernelUsers(ctx)
		if err != nil {
			return err
		}
		if by := users[id]; len(by) > 0 {
			return spore.Errorf(spore.CodeInUse, "%d frozen states and VMs stand on kernel %s, among them %s", len(by), id, by[0]).
				WithHint("remove those first; spore template ls and spore snapshot ls name them")
		}
		return n.opt.Kernels.Remove(ctx, id)
	})
	if held {
		return spore.Errorf(spore.CodeInUse, "kernel %s is booting a template or a sandbox right now", id).WithHint("try again when that is done")
	}
	return err
}
