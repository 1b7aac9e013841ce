// Package simguest plays the agent of simulated VMs: enough of it for a machine to boot, greet, use and freeze them.
package simguest

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"io"
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

// Players plays the agents of all VMs of an engine. Every command that one is given ends at once, and well, and is
// counted in the guest's memory.
type Players struct {
	mu      sync.Mutex
	waiting map[string]map[string]*waitingPort // by VM directory and port
}

// waitingPort is one port of a pair that waits for the other.
type waitingPort struct {
	conn net.Conn
	done chan struct{} // closed when the pair has been served
}

// New returns what plays the guests of one engine: its Serve is sim.Options.Guest.
func New() *Players { return &Players{waiting: map[string]map[string]*waitingPort{}} }

// Serve is called for each port; the one that comes second serves both.
func (s *Players) Serve(g *sim.Guest, port string, conn sim.Conn) {
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
	Play(g, control, data)
}

// Guest is what an agent is played in. Whatever it keeps in memory outlives a freeze and a thaw.
type Guest interface {
	io.ReaderAt
	io.WriterAt
	PowerOff()
}

// Play plays the agent of one guest over its two ports, until the host leaves.
func Play(g Guest, control, data net.Conn) {
	streams := newStreams()
	defer streams.Close()
	go http.Serve(streams, newAgent(g)) // ends with streams
	link.NewServer(data, func(c net.Conn) { link.Dispatch(c, streams.give) }).Run(control)
	data.Close()
}

// newAgent answers the internal routes as a guest would that has nothing to run.
func newAgent(g Guest) http.Handler {
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
	mux.HandleFunc("POST /poweroff", func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusAccepted)
		g.PowerOff()
	})
	mux.HandleFunc("GET /health", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })
	mux.HandleFunc("GET /logs", func(http.ResponseWriter, *http.Request) {})
	mux.Handle(processconnect.NewProcessHandler(processes{guest: g}))
	return mux
}

// processes is the process service of a guest that runs nothing but counts what it was to run.
type processes struct {
	processconnect.UnimplementedProcessHandler
	guest Guest
}

// counterAt is where in memory the commands are counted.
const counterAt = 8192

func (p processes) Start(_ context.Context, _ *connect.Request[process.StartRequest], out *connect.ServerStream[process.StartResponse]) error {
	var count [8]byte
	if _, err := p.guest.ReadAt(count[:], counterAt); err != nil {
		return err
	}
	binary.LittleEndian.PutUint64(count[:], binary.LittleEndian.Uint64(count[:])+1)
	if _, err := p.guest.WriteAt(count[:], counterAt); err != nil {
		return err
	}
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
