package daemon

import (
	"context"
	"encoding/json"
	"net"
	"net/http"
	"sync"

	"connectrpc.com/connect"

	"github.com/sporevm/spore/api/process"
	"github.com/sporevm/spore/api/process/processconnect"
	"github.com/sporevm/spore/internal/agent"
	"github.com/sporevm/spore/internal/guest/link"
	"github.com/sporevm/spore/internal/vmm"
	"github.com/sporevm/spore/internal/vmm/sim"
)

// simGuest plays the agent of simulated VMs: enough of it to be booted, greeted and frozen. Every command that it is
// given ends at once, and well.
type simGuest struct {
	mu      sync.Mutex
	waiting map[string]map[string]*waitingPort // by VM directory and port
}

// waitingPort is one port of a pair that waits for the other.
type waitingPort struct {
	conn net.Conn
	done chan struct{} // closed when the pair has been served
}

func newSimGuest() *simGuest { return &simGuest{waiting: map[string]map[string]*waitingPort{}} }

// serve is called for each port; the one that comes second serves both.
func (s *simGuest) serve(g *sim.Guest, port string, conn sim.Conn) {
	dir := g.Config().Dir
	mine := &waitingPort{conn: conn, done: make(chan struct{})}
	other := vmm.PortData
	if port == vmm.PortData {
		other = vmm.PortControl
	}
	s.mu.Lock()
	pair := s.waiting[dir]
	partner := pair[other]
	if partner == nil {
		if pair == nil {
			pair = map[string]*waitingPort{}
			s.waiting[dir] = pair
		}
		if old := pair[port]; old != nil { // its partner never came, and the host has tried again
			close(old.done)
		}
		pair[port] = mine
		s.mu.Unlock()
		<-mine.done
		return
	}
	delete(s.waiting, dir)
	s.mu.Unlock()
	defer close(partner.done)
	control, data := conn, partner.conn
	if port == vmm.PortData {
		control, data = data, control
	}
	streams := newStreams()
	defer streams.Close()
	go http.Serve(streams, simAgent()) // ends with streams
	link.NewServer(data, func(c net.Conn) { link.Dispatch(c, streams.give) }).Run(control)
	data.Close()
}

// simAgent answers the internal routes as a guest would that has nothing to run.
func simAgent() http.Handler {
	answer := func(v any) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			json.NewEncoder(w).Encode(v) // a host that has gone does not read it
		}
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /init", answer(agent.Facts{Agent: agent.Version}))
	mux.HandleFunc("POST /configure", answer(agent.Entrypoint{State: agent.EntrypointNone}))
	mux.HandleFunc("POST /quiesce", answer(struct{}{}))
	mux.HandleFunc("GET /health", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })
	mux.HandleFunc("GET /logs", func(http.ResponseWriter, *http.Request) {})
	mux.Handle(processconnect.NewProcessHandler(simProcesses{}))
	return mux
}

// simProcesses is the process service of a guest that runs nothing.
type simProcesses struct {
	processconnect.UnimplementedProcessHandler
}

func (simProcesses) Start(_ context.Context, _ *connect.Request[process.StartRequest], out *connect.ServerStream[process.StartResponse]) error {
	for _, e := range []*process.ProcessEvent{
		{Event: &process.ProcessEvent_Start{Start: &process.ProcessEvent_StartEvent{Pid: 1}}},
		{Event: &process.ProcessEvent_End{End: &process.ProcessEvent_EndEvent{Exited: true, Status: "exit status 0"}}},
	} {
		if err := out.Send(&process.StartResponse{Event: e}); err != nil {
			return err
		}
	}
	return nil
}

// streams is a listener whose connections are handed to it.
type streams struct {
	next chan net.Conn
	once sync.Once
	end  chan struct{}
}

func newStreams() *streams { return &streams{next: make(chan net.Conn), end: make(chan struct{})} }

func (s *streams) give(c net.Conn) {
	select {
	case s.next <- c:
	case <-s.end:
		c.Close()
	}
}

func (s *streams) Accept() (net.Conn, error) {
	select {
	case c := <-s.next:
		return c, nil
	case <-s.end:
		return nil, net.ErrClosed
	}
}

func (s *streams) Close() error   { s.once.Do(func() { close(s.end) }); return nil }
func (s *streams) Addr() net.Addr { return &net.UnixAddr{Name: "simulated", Net: "unix"} }
