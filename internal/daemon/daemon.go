// Package daemon puts the parts of the server together for a role, and takes them apart again in order.
package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/center"
	"github.com/sporevm/spore/internal/frozen"
	"github.com/sporevm/spore/internal/gateway"
	"github.com/sporevm/spore/internal/image"
	"github.com/sporevm/spore/internal/kernel"
	"github.com/sporevm/spore/internal/node"
	"github.com/sporevm/spore/internal/vmm"
)

// Config says how to serve.
type Config struct {
	DataDir   string
	Listen    string // host:port, where port 0 takes a free one, or unix:PATH
	TokenFile string // holds the bearer token; required beyond loopback
	Engine    string // EngineAuto, EngineQEMU, EngineFirecracker or EngineSim; "" is auto
	Accel     string // "auto", "kvm" or "tcg"; "" is auto
	Pool      int    // VMs kept ready for each template in use
	// NetworkPool is how many isolated networks are kept ready, once the first was asked for.
	NetworkPool int
	// ReclaimAfter is how long a sandbox must be idle before its memory goes to the machine's swap. 0: it never does.
	ReclaimAfter time.Duration
	// DiskDirs are the directories from which sandboxes may be given disks. Empty: none may.
	DiskDirs []string
	Init     string // file of spore-init for kernel bundles; "" is the one built in
	Version  string
	Logger   *slog.Logger `json:"-"`

	// DatabaseFile names a file that holds the URL of a PostgreSQL database, readable by its owner only; DatabaseURL is one
	// itself. Without either, rows are in SQLite in DataDir. See Database.
	DatabaseFile string
	DatabaseURL  string `json:"-"`
	// FirecrackerDir has directories, one for each version, with a firecracker and its jailer in each; "" is engines/firecracker in
	// DataDir, and when there are none there either, what PATH has.
	FirecrackerDir string
	// NoJailer runs Firecracker without its jailer, for servers that are not root. No walls hold then but its system call filter.
	NoJailer bool
	// FirecrackerPool is how many Firecracker processes are started ahead.
	FirecrackerPool int
	// HugePages has Firecracker ask for transparent huge pages under guests' memory, from version 1.17 on.
	HugePages bool
	// MemoryBackend is MemoryAuto, MemoryFile or MemoryUffd; "" is auto. QEMU needs none.
	MemoryBackend string

	// StorageLimits are the percentages of the disk from which on less is taken in. Zero: spore.DefaultStorageLimits.
	StorageLimits spore.StorageLimits
	// Retention removes old snapshots by itself. Zero: none.
	Retention center.Retention
	// Quota bounds how much may be made. Zero: nothing is bounded.
	Quota center.Quota
	// OperationTimeout caps snapshot, rollback, fork, pause and resume. Zero: 15 minutes.
	OperationTimeout time.Duration

	// Ready is called once requests are answered, with the URL to ask.
	Ready func(url string) `json:"-"`
	// Hook is told of each step of each operation; tests end the process there.
	Hook func(step string) `json:"-"`
}

// shutdownGrace is how long requests and jobs under way may take to end when the server is told to stop.
const shutdownGrace = 10 * time.Second

// Serve runs the all-in-one server until ctx ends, then stops in order. Sandboxes go on running: the next Serve on the
// same data directory takes them over.
func Serve(ctx context.Context, cfg Config) (err error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	if cfg.Hook == nil {
		cfg.Hook = func(string) {}
	}
	dir, err := openDataDir(cfg.DataDir)
	if err != nil {
		return err
	}
	defer closing(&err, dir.Close)
	listener, token, err := access(ctx, cfg)
	if err != nil {
		return err
	}
	defer listener.Close() // closed by the HTTP server as well; the second time is harmless

	if err := errors.Join(cfg.Retention.Validate(), cfg.Quota.Validate()); err != nil {
		return err
	}
	st, identity, err := openStore(ctx, cfg, dir)
	if err != nil {
		return err
	}
	defer closing(&err, st.Close)
	nets, err := openNetworks(cfg, dir)
	if err != nil {
		return err
	}
	defer closing(&err, nets.Close)
	machine, engine, err := openNode(ctx, cfg, dir, nets)
	if err != nil {
		return err
	}
	if c, ok := engine.(io.Closer); ok {
		defer closing(&err, c.Close)
	}
	defer closing(&err, func() error {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownGrace)
		defer cancel()
		return machine.Close(ctx)
	})
	ctx, fenced := context.WithCancelCause(ctx)
	defer fenced(nil)
	tc := center.New(st, []center.Node{machine}, center.Options{
		Logger: cfg.Logger, Hook: cfg.Hook, Controller: identity.id, Predecessor: identity.predecessor, Alone: identity.alone,
		OnFenced:  func() { fenced(errFenced) },
		Retention: cfg.Retention, Quota: cfg.Quota, OperationTimeout: cfg.OperationTimeout,
	})
	if err := tc.Start(ctx); err != nil {
		return err
	}
	defer closing(&err, func() error {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownGrace)
		defer cancel()
		return tc.Stop(ctx)
	})
	svc := &service{Center: tc, node: machine, version: cfg.Version, dataDir: dir.path, init: cfg.Init}
	key, err := gateway.TokenKey(dir.join("token-key"))
	if err != nil {
		return err
	}
	err = serveHTTP(ctx, cfg, dir, listener, gateway.New(svc, gateway.Options{
		Token: token, LoopbackOnly: gateway.Loopback(cfg.Listen), Logger: cfg.Logger, Closing: ctx.Done(), TokenKey: key,
	}))
	if cause := context.Cause(ctx); errors.Is(cause, errFenced) {
		return errors.Join(err, cause)
	}
	return err
}

// openNode opens what the machine stores, and the hypervisor. An engine that is an io.Closer is closed after the node.
func openNode(ctx context.Context, cfg Config, dir *dataDir, nets *networks) (_ *node.Node, _ vmm.Engine, err error) {
	images, err := image.Open(dir.path, image.Options{})
	if err != nil {
		return nil, nil, err
	}
	states, err := frozen.Open(dir.join("frozen"), frozen.Options{Log: cfg.Logger, Hook: cfg.Hook})
	if err != nil {
		return nil, nil, err
	}
	kernels := kernel.Open(dir.join("kernels"))
	name, err := chooseEngine(cfg.Engine, dir.path)
	if err != nil {
		return nil, nil, err
	}
	engine, err := openEngine(ctx, cfg, name, dir.path, kernels)
	if err != nil {
		return nil, nil, err
	}
	defer func() {
		if c, ok := engine.(io.Closer); ok && err != nil {
			err = errors.Join(err, c.Close())
		}
	}()
	host, err := os.Hostname()
	if err != nil {
		return nil, nil, err
	}
	if err := nets.fit(name, dir.join("vms")); err != nil {
		return nil, nil, err
	}
	governor, noGovernor, err := openGovernor(ctx, dir)
	if err != nil {
		return nil, nil, err
	}
	n, err := node.Open(ctx, node.Options{
		ID: host, DataDir: dir.path, Engine: engine, Images: images, Kernels: kernels, Frozen: states, Logger: cfg.Logger, Pool: cfg.Pool,
		Storage: cfg.StorageLimits, Networks: nets.by, DiskDirs: cfg.DiskDirs, ReclaimAfter: cfg.ReclaimAfter, NoNetworks: nets.no, Governor: governor, NoGovernor: noGovernor,
	})
	if err != nil {
		return nil, nil, err
	}
	if err := rememberEngine(dir.path, name); err != nil {
		return nil, nil, errors.Join(err, n.Close(ctx))
	}
	return n, engine, nil
}

// access opens the listener and reads the token. Only a listener on this machine may do without a token.
func access(ctx context.Context, cfg Config) (l net.Listener, token string, err error) {
	if cfg.TokenFile != "" {
		if token, err = gateway.ReadToken(cfg.TokenFile); err != nil {
			return nil, "", err
		}
	}
	l, err = gateway.Listen(ctx, cfg.Listen, token)
	return l, token, err
}

// urlOf is how clients name a listener.
func urlOf(l net.Listener) string {
	if l.Addr().Network() == "unix" {
		return "unix:" + l.Addr().String()
	}
	return "http://" + l.Addr().String()
}

// serveHTTP answers requests until ctx ends, and says in server.json where.
func serveHTTP(ctx context.Context, cfg Config, dir *dataDir, listener net.Listener, h http.Handler) error {
	url := urlOf(listener)
	where, err := json.Marshal(map[string]any{"url": url, "pid": os.Getpid()})
	if err != nil {
		return err
	}
	if err := writeFile(dir.join("server.json"), append(where, '\n')); err != nil {
		return err
	}
	defer os.Remove(dir.join("server.json"))

	srv := &http.Server{
		Handler: h, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute,
		BaseContext: func(net.Listener) context.Context { return context.WithoutCancel(ctx) },
		ErrorLog:    slog.NewLogLogger(cfg.Logger.Handler(), slog.LevelDebug),
	}
	failed := make(chan error, 1)
	go func() { failed <- srv.Serve(listener) }()
	cfg.Logger.Info("serving", "url", url, "data", dir.path)
	if cfg.Ready != nil {
		cfg.Ready(url)
	}
	select {
	case err := <-failed:
		return fmt.Errorf("serve: %w", err)
	case <-ctx.Done():
	}
	cfg.Logger.Info("stopping; sandboxes go on running")
	// Watchers end by themselves. Command streams last as long as their clients like, so they are cut in the end.
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownGrace)
	defer cancel()
	if err := srv.Shutdown(grace); err != nil {
		return srv.Close()
	}
	return nil
}

// closing joins the error of an orderly end to that of the run.
func closing(err *error, end func() error) { *err = errors.Join(*err, end()) }
