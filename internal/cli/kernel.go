package cli

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/api"
	"github.com/sporevm/spore/client"
)

func (a *app) kernelView() view[api.Kernel] {
	return view[api.Kernel]{
		id: func(k api.Kernel) string { return k.ID },
		columns: []column[api.Kernel]{
			{"id", false, func(k api.Kernel) string { return k.ID }},
			{"kernel", false, func(k api.Kernel) string { return k.KernelVersion }},
			{"agent", false, func(k api.Kernel) string { return k.AgentVersion }},
			{"default", false, func(k api.Kernel) string { return yes(k.Default) }},
			{"in use by", false, func(k api.Kernel) string { return fmt.Sprint(k.InUseBy) }},
			{"size", false, func(k api.Kernel) string { return size(k.Bytes) }},
			{"age", false, func(k api.Kernel) string { return a.age(k.CreatedAt) }},
		},
	}
}

func (a *app) kernelCommand() *cobra.Command {
	return newGroup("kernel", "Install, list and remove guest kernels", "  spore kernel install\n  spore kernel ls",
		a.kernelInstall(), a.kernelList(), a.kernelRemove())
}

// kernelFlags say where a kernel comes from.
func kernelFlags(cmd *cobra.Command, req *api.KernelRequest) {
	cmd.Flags().StringVar(&req.Package, "package", "", "a Debian kernel package instead of downloading one")
	cmd.Flags().StringVar(&req.Kernel, "kernel", "", "a kernel image, together with --modules")
	cmd.Flags().StringVar(&req.Modules, "modules", "", "the directory of its modules, such as /lib/modules/VERSION")
}

// absoluteKernel makes paths absolute: the server has another working directory.
func absoluteKernel(req *api.KernelRequest) error {
	for _, path := range []*string{&req.Package, &req.Kernel, &req.Modules} {
		if *path == "" {
			continue
		}
		abs, err := filepath.Abs(*path)
		if err != nil {
			return err
		}
		*path = abs
	}
	return nil
}

func (a *app) kernelInstall() *cobra.Command {
	var req api.KernelRequest
	cmd := &cobra.Command{
		Use:   "install",
		Short: "Install a guest kernel",
		Long: `Install a guest kernel: the distribution's cloud kernel, which is downloaded and not installed on the host, or one
from files on the server's machine. Several live side by side; the newest serves new templates.`,
		Example: "  spore kernel install\n  spore kernel install --kernel vmlinuz-6.1.0 --modules lib/modules/6.1.0",
		Args:    exactly(0),
		RunE: a.with(func(cmd *cobra.Command, c *client.Client, _ []string) error {
			if err := absoluteKernel(&req); err != nil {
				return err
			}
			k, err := a.installKernel(cmd.Context(), c, req)
			if err != nil {
				return err
			}
			return a.kernelView().one(a, *k)
		}),
	}
	kernelFlags(cmd, &req)
	return cmd
}

func (a *app) installKernel(ctx context.Context, c *client.Client, req api.KernelRequest) (*api.Kernel, error) {
	p := a.newProgress()
	defer p.finish()
	return c.InstallKernel(ctx, req, p.step)
}

func (a *app) kernelList() *cobra.Command {
	return &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List the installed kernels",
		Example: "  spore kernel ls",
		Args:    exactly(0),
		RunE: a.with(func(cmd *cobra.Command, c *client.Client, _ []string) error {
			found, err := c.ListKernels(cmd.Context())
			if err != nil {
				return err
			}
			return a.kernelView().list(a, found)
		}),
	}
}

func (a *app) kernelRemove() *cobra.Command {
	var dryRun bool
	cmd := &cobra.Command{
		Use:               "rm KERNEL...",
		Short:             "Remove kernels that nothing was frozen with",
		Example:           "  spore kernel rm --dry-run krn-0123456789abcdef01234567\n  spore kernel rm krn-0123456789abcdef01234567",
		Args:              atLeast(1),
		ValidArgsFunction: a.complete(kernels),
		RunE: a.with(func(cmd *cobra.Command, c *client.Client, args []string) error {
			installed, err := c.ListKernels(cmd.Context())
			if err != nil {
				return err
			}
			known := map[string]api.Kernel{}
			for _, k := range installed {
				known[k.ID] = k
			}
			var removed []api.Kernel
			err = many(cmd.Context(), args, func(id string) error {
				k, ok := known[id]
				if !ok {
					return spore.Errorf(spore.CodeNotFound, "there is no kernel %q", id).WithHint("spore kernel ls")
				}
				switch {
				case dryRun && k.InUseBy > 0:
					return spore.Errorf(spore.CodeInUse, "kernel %s would be kept: %d templates and snapshots were frozen with it", id, k.InUseBy)
				case !dryRun:
					if err := c.DeleteKernel(cmd.Context(), id); err != nil {
						return err
					}
				}
				removed = append(removed, k)
				return nil
			})
			if dryRun && len(removed) > 0 {
				fmt.Fprintln(a.Stderr, "would be removed:")
			}
			if len(removed) == 0 && err != nil {
				return err
			}
			return errors.Join(a.kernelView().list(a, removed), err)
		}),
	}
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "change nothing; only say what would happen")
	return cmd
}
