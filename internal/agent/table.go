package agent

import (
	"sort"
	"sync"
	"time"

	"connectrpc.com/connect"
)

// retention is how long the end of a process can still be asked for.
const retention = time.Minute

// table knows the processes that were started through the agent, by pid, until a while after their end.
type table struct {
	mu       sync.Mutex
	byPID    map[int]*Process
	starting map[string]bool // tags of processes that are about to be
}

// reserve takes a tag for a process that is about to be started, unless one that runs has it, or is about to.
func (t *table) reserve(tag string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.starting[tag] {
		return false
	}
	for _, p := range t.byPID {
		if p.tag == tag && p.running() {
			return false
		}
	}
	t.starting[tag] = true
	return true
}

// started gives a reserved tag up: the process is known by now, or there is none.
func (t *table) started(tag string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.starting, tag)
}

func (t *table) add(p *Process) {
	t.mu.Lock()
	t.byPID[p.child.Pid] = p
	t.mu.Unlock()
	go func() {
		<-p.ended
		time.AfterFunc(retention, func() {
			t.mu.Lock()
			defer t.mu.Unlock()
			if t.byPID[p.child.Pid] == p {
				delete(t.byPID, p.child.Pid)
			}
		})
	}()
}

// find returns the process that pick accepts, a running one if there is a choice.
func (t *table) find(pick func(*Process) bool) *Process {
	t.mu.Lock()
	defer t.mu.Unlock()
	var found *Process
	for _, p := range t.byPID {
		if !pick(p) {
			continue
		}
		if p.running() {
			return p
		}
		found = p
	}
	return found
}

// running lists the processes that have not ended, by pid.
func (t *table) running() []*Process {
	t.mu.Lock()
	defer t.mu.Unlock()
	var list []*Process
	for _, p := range t.byPID {
		if p.running() {
			list = append(list, p)
		}
	}
	sort.Slice(list, func(i, j int) bool { return list[i].child.Pid < list[j].child.Pid })
	return list
}

func (p *Process) running() bool {
	select {
	case <-p.ended:
		return false
	default:
		return true
	}
}

// run prepares and starts a command and remembers it.
func (a *Agent) run(c command) (*Process, *reader, error) {
	if c.tag != "" {
		if !a.processes.reserve(c.tag) {
			return nil, nil, connect.NewError(connect.CodeAlreadyExists, errTagTaken(c.tag))
		}
		defer a.processes.started(c.tag)
	}
	prepared, err := a.prepare(c)
	if err != nil {
		return nil, nil, err
	}
	p, rd, err := a.reaper.start(prepared)
	if err != nil {
		return nil, nil, err
	}
	a.processes.add(p)
	return p, rd, nil
}

type errTagTaken string

func (e errTagTaken) Error() string { return "a running process has the tag " + string(e) }
