// Package agent is what runs inside a sandbox on behalf of its host: it starts commands, moves files, and gives a thawed
// sandbox an identity of its own.
package agent

import (
	"math"
	"net/http"

	"connectrpc.com/connect"

	"github.com/sporevm/spore/api/filesystem/filesystemconnect"
	"github.com/sporevm/spore/api/process/processconnect"
)

// maxMessage bounds the messages of the services, in bytes.
const maxMessage = 16 << 20

// Options are what an Agent needs of the machine it runs in.
type Options struct {
	Reaper *Reaper // starts and reaps every process
	System System  // what only root in a guest may do

	// Poweroff begins an orderly power-off and returns at once. It is called at most once.
	Poweroff func(PoweroffRequest)

	// LogFile is where the output of the image's own command is kept beside memory; none when empty.
	LogFile string
}

// Agent serves one sandbox.
type Agent struct {
	reaper    *Reaper
	system    System
	poweroff  func(PoweroffRequest)
	settings  settings
	processes table
	entry     entrypoint
	watchers  watchers
	cpu       cpuMeter
}

// New makes an Agent. It knows nothing of the image until it is configured.
func New(o Options) *Agent {
	a := &Agent{reaper: o.Reaper, system: o.System, poweroff: o.Poweroff}
	a.processes.byPID, a.processes.starting = map[int]*Process{}, map[string]bool{}
	a.entry.log = newLog(o.LogFile)
	return a
}

// Handler serves the agent's HTTP interface: the services that users reach through the gateway, and internal routes
// that only the host may use.
func (a *Agent) Handler() http.Handler {
	mux := http.NewServeMux()
	// A request is one small message, or one write to a process; files travel outside the services.
	limit := connect.WithReadMaxBytes(maxMessage)
	// Answers go to the host's own memory: packing them would cost the guest far more than it could save.
	plain := connect.WithCompressMinBytes(math.MaxInt)
	mux.Handle(processconnect.NewProcessHandler(processService{a}, limit, plain))
	mux.Handle(filesystemconnect.NewFilesystemHandler(filesystemService{a}, limit, plain))
	mux.HandleFunc("GET /files", a.serveDownload)
	mux.HandleFunc("POST /files", a.serveUpload)
	mux.HandleFunc("GET /metrics", a.serveMetrics)
	mux.HandleFunc("GET /envs", a.serveEnvs)
	mux.HandleFunc("GET /health", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })
	mux.HandleFunc("POST /configure", a.serveConfigure)
	mux.HandleFunc("POST /init", a.serveInit)
	mux.HandleFunc("POST /quiesce", a.serveQuiesce)
	mux.HandleFunc("POST /poweroff", a.servePoweroff)
	mux.HandleFunc("GET /status", a.serveStatus)
	mux.HandleFunc("GET /logs", a.serveLogs)
	return mux
}
