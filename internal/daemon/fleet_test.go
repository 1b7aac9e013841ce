package daemon_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/api"
	"github.com/sporevm/spore/client"
	"github.com/sporevm/spore/internal/center"
	"github.com/sporevm/spore/internal/gateway"
	"github.com/sporevm/spore/internal/node/simnode"
	"github.com/sporevm/spore/internal/store/sqlite"
)

// fleet is a server in this process that is asked over HTTP. Its edge, its center and its rows in SQLite are real; its
// machines n1, n2, ... are simulated, and so is time: what takes the server hours is over in a moment.
type fleet struct {
	*client.Client
	t       *testing.T
	center  *center.Center
	cluster *simnode.Cluster
	opt     center.Options
	dir     string
	raw     *http.Client
	status  atomic.Int64 // of the last answer
	ahead   atomic.Int64 // how far the server's clock is ahead of the test's

	fault atomic.Pointer[func(node, step string) error]
	hook  atomic.Pointer[func(step string)]
	stop  func()
}

// fleetService is what the edge serves: simulated machines have no kernels to install.
type fleetService struct{ *center.Center }

var errSimulated = spore.Errorf(spore.CodeUnsupported, "the machines are simulated")

func (fleetService) Kernels(context.Context) ([]center.Kernel, error) { return nil, errSimulated }
func (fleetService) RemoveKernel(context.Context, string) error       { return errSimulated }
func (fleetService) Info(context.Context) (*center.Info, error)       { return nil, errSimulated }
func (fleetService) InstallKernel(context.Context, center.KernelSource, func(string, int64, int64)) (*center.Kernel, error) {
	return nil, errSimulated
}

// inFleet runs a test against a server with so many machines.
func inFleet(t *testing.T, machines int, test func(t *testing.T, f *fleet), change ...func(*center.Options)) {
	t.Helper()
	t.Parallel()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		f := &fleet{t: t, dir: dir}
		f.cluster = simnode.NewCluster(simnode.ClusterOptions{Fault: func(node, step string) error {
			if fault := f.fault.Load(); fault != nil {
				return (*fault)(node, step)
			}
			return nil
		}})
		for i := range machines {
			f.machine(i + 1)
		}
		now := func() time.Time { return time.Now().Add(time.Duration(f.ahead.Load())) }
		f.opt = center.Options{Alone: true, Logger: slog.New(slog.DiscardHandler), Now: now, Hook: func(step string) {
			if hook := f.hook.Load(); hook != nil {
				(*hook)(step)
			}
		}}
		if testing.Verbose() {
			f.opt.Logger = slog.New(slog.NewTextHandler(t.Output(), nil))
		}
		for _, c := range change {
			c(&f.opt)
		}
		f.start()
		defer func() { f.stop() }()
		test(t, f)
		f.checked()
	})
}

// machine adds a machine to the world; the server does not know of it yet.
func (f *fleet) machine(i int) *simnode.Machine {
	return f.cluster.New(simnode.Options{ID: fmt.Sprint("n", i), Address: fmt.Sprintf("10.0.0.%d", i), DiskBytes: 64 << 30})
}

// start brings up the server on its database.
func (f *fleet) start() {
	f.t.Helper()
	st, err := sqlite.Open(f.t.Context(), filepath.Join(f.dir, "spore.db"), sqlite.Options{Logger: f.opt.Logger})
	f.ok(err)
	var nodes []center.Node
	var handles []*simnode.Handle
	for _, m := range f.cluster.Machines() {
		h := m.Connect()
		nodes, handles = append(nodes, h), append(handles, h)
	}
	f.center = center.New(st, nodes, f.opt)
	f.ok(f.center.Start(f.t.Context()))
	closing := make(chan struct{})
	listener := &pipeListener{conns: make(chan net.Conn), closed: make(chan struct{})}
	srv := &http.Server{Handler: gateway.New(fleetService{f.center}, gateway.Options{
		Logger: f.opt.Logger, Closing: closing, TokenKey: []byte("a key of thirty-two bytes, no more"),
	})}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(listener) }()
	transport := &http.Transport{DialContext: listener.dial}
	f.raw = &http.Client{Transport: transport}
	f.Client, err = client.New("http://spore.test", client.WithTransport(&statusKeeper{transport, &f.status}))
	f.ok(err)
	f.stop = func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		close(closing)
		f.ok(srv.Shutdown(ctx))
		if err := <-served; !errors.Is(err, http.ErrServerClosed) {
			f.t.Error(err)
		}
		transport.CloseIdleConnections()
		f.ok(f.center.Stop(ctx))
		for _, h := range handles {
			h.Close()
		}
		f.ok(st.Close())
	}
}

// restart ends the server in order and brings up another one.
func (f *fleet) restart() {
	f.t.Helper()
	f.stop()
	f.start()
}

// checked wants every machine whole, once what is under way has ended.
func (f *fleet) checked() {
	f.t.Helper()
	f.pass(time.Second)
	for _, a := range f.cluster.Audit() {
		for _, v := range a.Violations {
			f.t.Errorf("%s: %s", a.Node, v)
		}
		if a.ReservedBytes != 0 {
			f.t.Errorf("%s: %d bytes are promised to nobody", a.Node, a.ReservedBytes)
		}
	}
}

// pass lets time go by, and what it brings about be done.
func (f *fleet) pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// loops is long enough for all that the server does now and then to come round once, but for what it does by the hour.
const loops = 65 * time.Second

// leap makes it much later for the server, which does not live through all the time between.
func (f *fleet) leap(d time.Duration) {
	f.ahead.Add(int64(d))
	f.pass(loops)
}

// until lets time go by until ok says so; within the hours after which a server has tried everything.
func (f *fleet) until(what string, ok func() bool) {
	f.t.Helper()
	for begun := time.Now(); !ok(); f.pass(time.Second) {
		if time.Since(begun) > 3*time.Hour {
			f.t.Fatalf("never: %s", what)
		}
	}
}

func (f *fleet) ok(err error) {
	f.t.Helper()
	if err != nil {
		f.t.Fatal(err)
	}
}

// breaks makes one step of the machines' calls fail from now on; "" heals them.
func (f *fleet) breaks(node, step string, err error) {
	if step == "" {
		f.fault.Store(nil)
		return
	}
	fault := func(n, s string) error {
		if (node == "" || n == node) && s == step {
			return err
		}
		return nil
	}
	f.fault.Store(&fault)
}

// pauses stops the next operation that comes by a step until it is told to go on.
func (f *fleet) pauses(step string) (at <-chan struct{}, goOn func()) {
	arrived, leave := make(chan struct{}), make(chan struct{})
	var taken atomic.Bool
	hook := func(s string) {
		if s == step && taken.CompareAndSwap(false, true) {
			close(arrived)
			<-leave
		}
	}
	f.hook.Store(&hook)
	return arrived, func() { f.hook.Store(nil); close(leave) }
}

// refusal is what a refusal must be like.
type refusal struct {
	code   spore.Code
	status int
	reason spore.Reason
	field  string
	words  []string // in the message
	hint   string   // in the hint, which is never empty for an error with a reason
}

// refused wants the last answer of the server to be that refusal.
func (f *fleet) refused(err error, want refusal) {
	f.t.Helper()
	if err == nil {
		f.t.Errorf("it was not refused as %s", want.code)
		return
	}
	f.like(spore.AsError(err), want)
	if got := int(f.status.Load()); got != want.status {
		f.t.Errorf("%v: status %d, want %d", err, got, want.status)
	}
}

func (f *fleet) like(e *spore.Error, want refusal) {
	f.t.Helper()
	if e.Code != want.code || e.Reason != want.reason || e.Field != want.field {
		f.t.Errorf("%v (%s %s, field %q) is not %s %s, field %q", e, e.Code, e.Reason, e.Field, want.code, want.reason, want.field)
	}
	for _, w := range want.words {
		if !strings.Contains(e.Error(), w) {
			f.t.Errorf("%q does not mention %q", e.Error(), w)
		}
	}
	if !strings.Contains(e.Hint, want.hint) || want.reason != "" && e.Hint == "" {
		f.t.Errorf("the hint of %q is %q, without %q", e.Error(), e.Hint, want.hint)
	}
}

// do sends a request as it is and answers its status and what it was refused with.
func (f *fleet) do(method, path, body string, header ...string) (int, *spore.Error) {
	f.t.Helper()
	req, err := http.NewRequestWithContext(f.t.Context(), method, "http://spore.test"+path, strings.NewReader(body))
	f.ok(err)
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	res, err := f.raw.Do(req)
	f.ok(err)
	defer res.Body.Close()
	raw, err := io.ReadAll(res.Body)
	f.ok(err)
	if res.StatusCode < 400 {
		return res.StatusCode, nil
	}
	var e api.Error
	if err := json.Unmarshal(raw, &e); err != nil || e.Code == "" || e.Message == "" {
		f.t.Fatalf("%s %s: %d is no error: %s", method, path, res.StatusCode, raw)
	}
	return res.StatusCode, &spore.Error{Code: e.Code, Message: e.Message, Field: e.Field, Hint: e.Hint, Reason: e.Reason}
}

// build builds a template and waits for it.
func (f *fleet) build(name string, p api.ReplicaPolicy) *api.Template {
	f.t.Helper()
	tj, err := f.BuildTemplate(f.t.Context(), api.BuildRequest{Name: name, Image: "registry.test/" + name + ":1", MemoryMiB: 128, DiskMiB: 64, Replicas: p})
	f.ok(err)
	return f.made(tj)
}

func (f *fleet) made(tj *api.TemplateJob) *api.Template {
	f.t.Helper()
	f.wait(tj.Job.ID)
	return f.template(tj.Template.ID)
}

func (f *fleet) template(ref string) *api.Template {
	f.t.Helper()
	t, err := f.GetTemplate(f.t.Context(), ref)
	f.ok(err)
	return t
}

// wait waits for a job that is to end well.
func (f *fleet) wait(id string) *api.Job {
	f.t.Helper()
	j, err := f.WaitJob(f.t.Context(), id, nil)
	f.ok(err)
	return j
}

// redo makes replicas again and waits for it to end well.
func (f *fleet) redo(ref string, mode spore.RedoMode, nodes ...string) *api.Job {
	f.t.Helper()
	j, err := f.RedoTemplate(f.t.Context(), ref, api.RedoRequest{Mode: mode, Nodes: nodes})
	f.ok(err)
	return f.wait(j.ID)
}

func (f *fleet) create(ref string, nodes ...string) *api.Sandbox {
	f.t.Helper()
	s, err := f.CreateSandbox(f.t.Context(), api.CreateRequest{Template: ref, Nodes: nodes})
	f.ok(err)
	return s
}

func (f *fleet) snapshot(sandbox, name string) *api.Template {
	f.t.Helper()
	s, err := f.CreateSnapshot(f.t.Context(), sandbox, api.SnapshotRequest{Name: name})
	f.ok(err)
	f.pass(time.Second) // so that no two are of one instant
	return s
}

func (f *fleet) commit(sandbox, name string, p api.ReplicaPolicy) *api.Template {
	f.t.Helper()
	tj, err := f.CommitSandbox(f.t.Context(), sandbox, api.CommitRequest{Name: name, Replicas: p})
	f.ok(err)
	return f.made(tj)
}

// replicas says where a template is and how it stands there: "n1 READY, n2 FAILED".
func (f *fleet) replicas(ref string) string {
	f.t.Helper()
	list, err := f.ListReplicas(f.t.Context(), ref)
	f.ok(err)
	said := make([]string, len(list))
	for i, r := range list {
		said[i] = r.NodeID + " " + string(r.Status)
	}
	return strings.Join(said, ", ")
}

// lost takes a machine away until the server has noticed.
func (f *fleet) lost(id string) {
	f.t.Helper()
	f.cluster.Machine(id).SetReachable(false)
	f.until(id+" is known not to answer", func() bool { return f.node(id).State == spore.NodeUnreachable })
}

func (f *fleet) node(id string) *api.Node {
	f.t.Helper()
	n, err := f.GetNode(f.t.Context(), id)
	f.ok(err)
	return n
}

// statusKeeper remembers the status of the last answer.
type statusKeeper struct {
	http.RoundTripper
	last *atomic.Int64
}

func (k *statusKeeper) RoundTrip(r *http.Request) (*http.Response, error) {
	res, err := k.RoundTripper.RoundTrip(r)
	if err == nil {
		k.last.Store(int64(res.StatusCode))
	}
	return res, err
}

// pipeListener is a listener whose connections lie within the process, so that time can stand still for them.
type pipeListener struct {
	conns  chan net.Conn
	closed chan struct{}
	once   atomic.Bool
}

func (l *pipeListener) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	here, there := net.Pipe()
	select {
	case l.conns <- there:
		return here, nil
	case <-l.closed:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error {
	if l.once.CompareAndSwap(false, true) {
		close(l.closed)
	}
	return nil
}

func (l *pipeListener) Addr() net.Addr { return pipeAddr{} }

type pipeAddr struct{}

func (pipeAddr) Network() string { return "pipe" }
func (pipeAddr) String() string  { return "pipe" }
