package cli

import (
	"errors"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
)

var (
	engines  = []string{"auto", "qemu", "firecracker", "sim"}
	backends = []string{"auto", "file", "uffd"}
)

// engineFlags say where hypervisors are and how they are used.
type engineFlags struct{ EngineConfig }

func (f *engineFlags) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	firecrackerFlags(cmd, &f.EngineConfig)
	flags.IntVar(&f.FirecrackerPool, "firecracker-pool", 2, "Firecracker processes to start ahead")
	flags.BoolVar(&f.HugePages, "huge-pages", false, "have Firecracker, from 1.17 on, ask for huge pages under guests' memory: fewer faults, more memory for each VM")
	flags.StringVar(&f.MemoryBackend, "memory-backend", "auto", "how Firecracker gets the memory of a thawed VM: auto (what this host is better at), file or uffd")
	cmd.RegisterFlagCompletionFunc("memory-backend", words(backends...))
}

// firecrackerFlags say which Firecracker, and whether in a jail.
func firecrackerFlags(cmd *cobra.Command, to *EngineConfig) {
	cmd.Flags().StringVar(&to.FirecrackerDir, "firecracker-dir", "", "directory with one directory for each version of Firecracker, which holds firecracker and jailer (default engines/firecracker in the data directory, else PATH)")
	cmd.Flags().BoolVar(&to.NoJailer, "no-jailer", false, "run Firecracker without its jailer, with no wall around it but its system call filter")
	cmd.MarkFlagDirname("firecracker-dir")
}

// into takes the flags over into what the server is told.
func (f *engineFlags) into(cfg *EngineConfig, cmd *cobra.Command) (err error) {
	if !slices.Contains(backends, f.MemoryBackend) {
		return usage(cmd, errors.New("--memory-backend takes "+strings.Join(backends, ", ")+", not "+quote(f.MemoryBackend)))
	}
	if f.FirecrackerPool < 0 {
		return usage(cmd, errors.New("--firecracker-pool cannot be negative"))
	}
	if f.FirecrackerDir != "" {
		if f.FirecrackerDir, err = filepath.Abs(f.FirecrackerDir); err != nil {
			return err
		}
	}
	*cfg = f.EngineConfig
	return nil
}
