package cli

import (
	"errors"
	"fmt"
	"path/filepath"

	"github.com/spf13/cobra"
)

var checkView = view[Check]{
	id: func(c Check) string { return c.Name },
	columns: []column[Check]{
		{"check", false, func(c Check) string { return c.Name }},
		{"status", false, func(c Check) string { return string(c.Status) }},
		{"detail", false, func(c Check) string { return c.Detail }},
	},
}

var leftoverView = view[Leftover]{
	id: func(l Leftover) string { return l.Name },
	columns: []column[Leftover]{
		{"kind", false, func(l Leftover) string { return l.Kind }},
		{"name", false, func(l Leftover) string { return l.Name }},
		{"detail", false, func(l Leftover) string { return l.Detail }},
	},
}

func (a *app) doctorCommand() *cobra.Command {
	var cfg DoctorConfig
	var clean CleanConfig
	var remove bool
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Say whether this machine can run Spore, and how well",
		Long: `Say whether this machine can run Spore, and how well: which engines are there and why others are not, whether KVM
runs guests, how memory is best brought to them, networks, limits, and what is left of servers that are gone. Needs no
server. The exit code is 1 when something fails.

--clean removes from this host what a server on the data directory has left there when it died or its directory was removed:
VMs that no sandbox needs, networks, control groups. Sandboxes that go on running without a server are kept for the next one,
unless --sandboxes is given. It is refused while a server uses the directory.`,
		Example: "  spore doctor\n  spore doctor --firecracker-dir /opt/firecracker\n  spore doctor --clean --dry-run",
		Args:    exactly(0),
		RunE: a.run(func(cmd *cobra.Command, _ []string) (err error) {
			if clean.DataDir, err = a.dataDir(); err != nil {
				return err
			}
			if remove {
				return a.clean(cmd, clean)
			}
			if clean.DryRun || clean.Sandboxes {
				return usage(cmd, errors.New("--dry-run and --sandboxes go with --clean"))
			}
			cfg.DataDir = clean.DataDir
			if cfg.FirecrackerDir != "" {
				if cfg.FirecrackerDir, err = filepath.Abs(cfg.FirecrackerDir); err != nil {
					return err
				}
			}
			return a.examine(cmd, cfg)
		}),
	}
	f := cmd.Flags()
	f.BoolVar(&remove, "clean", false, "remove what a server that is gone has left on this host")
	f.BoolVar(&clean.Sandboxes, "sandboxes", false, "with --clean: end the sandboxes that run without a server, too")
	dryRunFlag(cmd, &clean.DryRun)
	firecrackerFlags(cmd, &cfg.EngineConfig)
	return cmd
}

func (a *app) examine(cmd *cobra.Command, cfg DoctorConfig) error {
	if a.Doctor == nil {
		return notBuiltIn("the doctor")
	}
	checks, err := a.Doctor(cmd.Context(), cfg)
	if err != nil {
		return err
	}
	if err := checkView.list(a, checks); err != nil {
		return err
	}
	failed := false
	for _, c := range checks {
		failed = failed || c.Status == CheckFail
		if c.Hint != "" && c.Status != CheckOK {
			fmt.Fprintf(a.Stderr, "hint: %s: %s\n", printable(c.Name, false), printable(c.Hint, true))
		}
	}
	if failed {
		return &exitError{code: exitFailure}
	}
	return nil
}

// clean shows what was removed also when not all could be.
func (a *app) clean(cmd *cobra.Command, cfg CleanConfig) error {
	if a.Clean == nil {
		return notBuiltIn("the doctor")
	}
	found, err := a.Clean(cmd.Context(), cfg)
	if len(found) == 0 && err != nil {
		return err
	}
	return errors.Join(leftoverView.list(a, found), err)
}
