// Package daemon puts the parts of the server together for a role, and takes them apart again in order.
package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/center"
	"github.com/sporevm/spore/internal/frozen"
	"github.com/sporevm/spore/internal/gateway"
	"github.com/sporevm/spore/internal/image"
	"github.com/sporevm/spore/internal/kernel"
	"github.com/sporevm/spore/internal/node"
	"github.com/sporevm/spore/internal/store/sqlite"
)

// Config says how to serve.
type Config struct {
	DataDir   string
	Listen    string // host:port, where port 0 takes a free one, or unix:PATH
	TokenFile string // holds the bearer token; required beyond loopback
	Engine    string // "qemu" or "sim"; "" is qemu
	Accel     string // "auto", "kvm" or "tcg"; "" is auto
	Pool      int    // VMs kept ready for each template in use
	Init      string // file of spore-init for kernel bundles; "" is the one built in
	Version   string
	Logger    *slog.Logger `json:"-"`

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
	token, loopback, err := access(cfg)
	if err != nil {
		return err
	}
	dir, err := openDataDir(cfg.DataDir)
	if err != nil {
		return err
	}
	defer closing(&err, dir.Close)

	listener, url, err := listen(cfg.Listen)
	if err != nil {
		return spore.Invalidf("listen", "cannot listen on %s: %v", cfg.Listen, err).WithHint("choose another address with --listen")
	}
	defer listener.Close() // closed by the HTTP server as well; the second time is harmless

	st, err := sqlite.Open(ctx, dir.join("spore.db"), sqlite.Options{Logger: cfg.Logger})
	if err != nil {
		return err
	}
	defer closing(&err, st.Close)
	machine, err := openNode(ctx, cfg, dir)
	if err != nil {
		return err
	}
	defer closing(&err, func() error {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownGrace)
		defer cancel()
		return machine.Close(ctx)
	})
	tc := center.New(st, machine, center.Options{Logger: cfg.Logger, Hook: cfg.Hook})
	if err := tc.Start(ctx); err != nil {
		return err
	}
	defer closing(&err, func() error {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownGrace)
		defer cancel()
		return tc.Stop(ctx)
	})
	svc := &service{Center: tc, node: machine, version: cfg.Version, dataDir: dir.path, init: cfg.Init}
	return serveHTTP(ctx, cfg, dir, listener, url, gateway.New(svc, gateway.Options{Token: token, LoopbackOnly: loopback, Logger: cfg.Logger}))
}

// openNode opens what the machine stores, and the hypervisor.
func openNode(ctx context.Context, cfg Config, dir *dataDir) (*node.Node, error) {
	images, err := image.Open(dir.path, image.Options{})
	if err != nil {
		return nil, err
	}
	states, err := frozen.Open(dir.join("frozen"), frozen.Options{Log: cfg.Logger, Hook: cfg.Hook})
	if err != nil {
		return nil, err
	}
	kernels := kernel.Open(dir.join("kernels"))
	engine, err := openEngine(cfg, dir.path, kernels)
	if err != nil {
		return nil, err
	}
	name, err := os.Hostname()
	if err != nil {
		return nil, err
	}
	return node.Open(ctx, node.Options{
		ID: name, DataDir: dir.path, Engine: engine, Images: images, Kernels: kernels, Frozen: states, Logger: cfg.Logger, Pool: cfg.Pool,
	})
}

// unixScheme begins the address of a unix socket.
const unixScheme = "unix:"

// listen opens what cfg.Listen names and answers the URL that reaches it. A unix socket is for the server's user alone,
// and takes the place of one that an earlier server has left; the data directory's lock says that that one has ended.
func listen(address string) (net.Listener, string, error) {
	path, ok := strings.CutPrefix(address, unixScheme)
	if !ok {
		l, err := net.Listen("tcp", address)
		if err != nil {
			return nil, "", err
		}
		return l, "http://" + l.Addr().String(), nil
	}
	if st, err := os.Lstat(path); err == nil && st.Mode()&os.ModeSocket != 0 {
		if c, err := net.Dial("unix", path); err == nil {
			c.Close()
			return nil, "", errors.New("another server answers there")
		}
		if err := os.Remove(path); err != nil {
			return nil, "", err
		}
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, "", err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, "", errors.Join(err, l.Close())
	}
	return l, unixScheme + path, nil
}

// access decides who may ask: anyone on the machine when listening on loopback, else only bearers of the token.
func access(cfg Config) (token string, loopback bool, err error) {
	if strings.HasPrefix(cfg.Listen, unixScheme) {
		loopback = true
	} else {
		host, _, err := net.SplitHostPort(cfg.Listen)
		if err != nil {
			return "", false, spore.Invalidf("listen", "%q is neither host:port nor unix:PATH", cfg.Listen)
		}
		ip := net.ParseIP(host)
		loopback = host == "localhost" || ip != nil && ip.IsLoopback()
	}
	if cfg.TokenFile == "" {
		if !loopback {
			return "", false, spore.Invalidf("listen", "%s is not loopback, and there is no token", cfg.Listen).
				WithHint("name a file that holds one with --token-file, or listen on 127.0.0.1")
		}
		return "", true, nil
	}
	raw, err := os.ReadFile(cfg.TokenFile)
	if err != nil {
		return "", false, spore.Invalidf("tokenFile", "cannot be read: %v", err)
	}
	if token = strings.TrimSpace(string(raw)); len(token) < 16 {
		return "", false, spore.Invalidf("tokenFile", "the token has %d characters", len(token)).WithHint("16 or more, such as from: openssl rand -hex 16")
	}
	return token, loopback, nil
}

// serveHTTP answers requests until ctx ends, and says in server.json where.
func serveHTTP(ctx context.Context, cfg Config, dir *dataDir, listener net.Listener, url string, h http.Handler) error {
	where, err := json.Marshal(map[string]any{"url": url, "pid": os.Getpid()})
	if err != nil {
		return err
	}
	if err := writeFile(dir.join("server.json"), append(where, '\n')); err != nil {
		return err
	}
	defer os.Remove(dir.join("server.json"))

	requests, endRequests := context.WithCancel(context.WithoutCancel(ctx))
	defer endRequests()
	srv := &http.Server{
		Handler: h, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute,
		BaseContext: func(net.Listener) context.Context { return requests },
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
	// Watchers and command streams last as long as their clients like, so they are ended, not waited for.
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownGrace)
	defer cancel()
	time.AfterFunc(shutdownGrace/2, endRequests)
	if err := srv.Shutdown(grace); err != nil {
		return srv.Close()
	}
	return nil
}

// closing joins the error of an orderly end to that of the run.
func closing(err *error, end func() error) { *err = errors.Join(*err, end()) }
