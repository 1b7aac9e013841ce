package main

import (
	"context"

	"github.com/sporevm/spore/internal/bench"
	"github.com/sporevm/spore/internal/center"
	"github.com/sporevm/spore/internal/cli"
	"github.com/sporevm/spore/internal/daemon"
)

// wire gives the command line the rooms that it does not know itself.
func wire(o cli.Options) cli.Options {
	o.Serve, o.Doctor, o.Clean, o.Bench, o.BenchRows, o.BenchCenter = serve, doctor, clean, measure, bench.Names(), measureCenter
	return o
}

func serve(ctx context.Context, cfg cli.ServeConfig) error {
	return daemon.Serve(ctx, daemon.Config{
		DataDir: cfg.DataDir, Listen: cfg.Listen, TokenFile: cfg.TokenFile, Engine: cfg.Engine, Accel: cfg.Accel,
		Pool: cfg.Pool, NetworkPool: cfg.NetworkPool, DiskDirs: cfg.DiskDirs, ReclaimAfter: cfg.ReclaimAfter,
		Version: cfg.Version, Logger: cfg.Logger, DatabaseFile: cfg.DatabaseFile, DatabaseURL: cfg.DatabaseURL,
		StorageLimits: cfg.StorageLimits, Retention: center.Retention{KeepLast: cfg.KeepLast, MaxAge: cfg.MaxAge},
		Quota:            center.Quota{SnapshotsPerSandbox: cfg.SnapshotsPerSandbox, Templates: cfg.Templates, Bytes: cfg.QuotaBytes},
		OperationTimeout: cfg.OperationTimeout,
		FirecrackerDir:   cfg.FirecrackerDir, NoJailer: cfg.NoJailer, FirecrackerPool: cfg.FirecrackerPool, MemoryBackend: cfg.MemoryBackend, HugePages: cfg.HugePages,
	})
}

func doctor(ctx context.Context, cfg cli.DoctorConfig) ([]cli.Check, error) {
	findings, err := daemon.Doctor(ctx, daemon.Config{DataDir: cfg.DataDir, FirecrackerDir: cfg.FirecrackerDir, NoJailer: cfg.NoJailer})
	checks := make([]cli.Check, len(findings))
	for i, f := range findings {
		checks[i] = cli.Check{Name: f.Name, Status: cli.CheckStatus(f.Verdict), Detail: f.Detail, Hint: f.Hint}
	}
	return checks, err
}

func clean(ctx context.Context, cfg cli.CleanConfig) ([]cli.Leftover, error) {
	found, err := daemon.Clean(ctx, daemon.CleanConfig{DataDir: cfg.DataDir, Sandboxes: cfg.Sandboxes, DryRun: cfg.DryRun})
	list := make([]cli.Leftover, len(found))
	for i, l := range found {
		list[i] = cli.Leftover(l)
	}
	return list, err
}

func measure(ctx context.Context, cfg cli.BenchConfig) (any, error) {
	return bench.Run(ctx, bench.Config{
		Serve: func(ctx context.Context, s bench.Server) error {
			return daemon.Serve(ctx, daemon.Config{
				DataDir: s.DataDir, Listen: "127.0.0.1:0", Pool: s.Pool, Logger: s.Logger, Ready: s.Ready,
			})
		},
		DataDir: cfg.DataDir, Image: cfg.Image, Kernel: cfg.Kernel, Rows: cfg.Rows, Quick: cfg.Quick,
		ResultsDir: cfg.ResultsDir, Out: cfg.Out, Logger: cfg.Logger,
	})
}

func measureCenter(ctx context.Context, cfg cli.BenchCenterConfig) (any, error) {
	url, err := daemon.Config{DatabaseFile: cfg.DatabaseFile}.Database()
	if err != nil {
		return nil, err
	}
	return bench.RunControl(ctx, bench.ControlConfig{
		DataDir: cfg.DataDir, Postgres: cfg.Postgres, DatabaseURL: url, Callers: cfg.Callers, Machines: cfg.Machines, Snapshots: cfg.Snapshots,
		Quick: cfg.Quick, ResultsDir: cfg.ResultsDir, Out: cfg.Out, Logger: cfg.Logger,
	})
}
