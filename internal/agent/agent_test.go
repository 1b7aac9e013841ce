package agent

import (
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/sporevm/spore/api/filesystem/filesystemconnect"
	"github.com/sporevm/spore/api/process/processconnect"
)

// fakeSystem stands in for what only a guest may do.
type fakeSystem struct {
	mu        sync.Mutex
	entropy   []byte
	clock     time.Time
	hostname  string
	machineID string
	synced    int
	fail      error
}

func (f *fakeSystem) AddEntropy(p []byte) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.entropy = append(f.entropy, p...)
	return f.fail
}
func (f *fakeSystem) SetClock(t time.Time) error    { f.clock = t; return f.fail }
func (f *fakeSystem) SetHostname(name string) error { f.hostname = name; return f.fail }
func (f *fakeSystem) SetMachineID(id string) error  { f.machineID = id; return f.fail }
func (f *fakeSystem) SetAddress(Address) error      { return f.fail }
func (f *fakeSystem) SetNameservers([]string) error { return f.fail }
func (f *fakeSystem) DropConnections() (int, error) { return 3, f.fail }
func (f *fakeSystem) Sync()                         { f.synced++ }
func (f *fakeSystem) Facts(facts *Facts) error      { facts.BootID = "boot"; return f.fail }

// bed is an agent on this machine, served over HTTP.
type bed struct {
	agent  *Agent
	system *fakeSystem
	url    string
	proc   processconnect.ProcessClient
	files  filesystemconnect.FilesystemClient
	off    chan PoweroffRequest
}

func newBed(t *testing.T) *bed {
	t.Helper()
	b := &bed{system: &fakeSystem{}, off: make(chan PoweroffRequest, 1)}
	b.agent = New(Options{Reaper: NewReaper(false), System: b.system, Poweroff: func(r PoweroffRequest) { b.off <- r }, LogFile: t.TempDir() + "/log"})
	srv := httptest.NewServer(b.agent.Handler())
	t.Cleanup(func() {
		for _, p := range b.agent.processes.running() {
			p.child.Signal(9)
			<-p.ended
		}
		srv.CloseClientConnections()
		srv.Close()
	})
	b.url = srv.URL
	client := &http.Client{Transport: &http.Transport{}}
	b.proc = processconnect.NewProcessClient(client, srv.URL, connect.WithProtoJSON())
	b.files = filesystemconnect.NewFilesystemClient(client, srv.URL, connect.WithProtoJSON())
	return b
}
