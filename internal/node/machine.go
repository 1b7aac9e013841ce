package node

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/frozen"
	"github.com/sporevm/spore/internal/guest"
	"github.com/sporevm/spore/internal/vmm"
)

// owner is what a VM's directory says of it.
type owner struct {
	Sandbox    string       `json:"sandbox"` // "" while it is nobody's: a template boot, or a VM in the pool
	Generation int          `json:"generation"`
	FrozenID   string       `json:"frozenId"` // what it was thawed from
	Config     vmm.Config   `json:"config"`
	Shape      frozen.Shape `json:"shape"`
}

const (
	ownerFile = "owner.json"
	diskFile  = "disk.img"
)

// machine is one VM and the way to its agent.
type machine struct {
	id    string
	node  *Node
	vm    vmm.VM
	owner owner // guarded by node.mu once the machine is registered

	ending atomic.Bool // set before we end it, so that its exit is no surprise
	freeze sync.Mutex  // one capture at a time

	agentMu sync.Mutex
	agent   *guest.Agent
}

func newMachineID() string {
	var b [10]byte
	rand.Read(b[:])
	return "v" + hex.EncodeToString(b[:])
}

func (n *Node) machineDir(id string) string { return n.path("vms", id) }

// makeDir makes a VM's directory with its owner file: from now on Recover knows of it.
func (n *Node) makeDir(id string, o owner) (string, error) {
	dir := n.machineDir(id)
	if err := os.Mkdir(dir, 0o711); err != nil {
		return "", err
	}
	return dir, writeOwner(dir, o)
}

// writeOwner replaces a VM's owner file in one step. It need not survive a crash of the machine, which no VM does.
func writeOwner(dir string, o owner) error {
	raw, err := json.Marshal(o)
	if err != nil {
		return err
	}
	aside := filepath.Join(dir, ownerFile+".new")
	if err := os.WriteFile(aside, raw, 0o600); err != nil {
		return err
	}
	return os.Rename(aside, filepath.Join(dir, ownerFile))
}

func readOwner(dir string) (o owner, err error) {
	raw, err := os.ReadFile(filepath.Join(dir, ownerFile))
	if err != nil {
		return o, err
	}
	return o, json.Unmarshal(raw, &o)
}

// connect answers the way to the agent, finding it if that was not done before. From then on it finds the guest again
// by itself.
func (m *machine) connect(ctx context.Context) (*guest.Agent, error) {
	m.agentMu.Lock()
	defer m.agentMu.Unlock()
	if m.agent != nil {
		return m.agent, nil
	}
	a, err := guest.Connect(ctx, m.vm.DialPort)
	if err != nil {
		return nil, err
	}
	m.agent = a
	return a, nil
}

func (m *machine) closeAgent() {
	m.agentMu.Lock()
	defer m.agentMu.Unlock()
	if m.agent != nil {
		m.agent.Close()
		m.agent = nil
	}
}

// release lets go of the VM, which goes on running.
func (m *machine) release() {
	m.ending.Store(true)
	m.closeAgent()
	if err := m.vm.Release(); err != nil {
		m.node.log.Warn("letting go of a VM", "vm", m.id, "err", err)
	}
}

// end kills the VM and removes everything it had. It is idempotent.
func (n *Node) end(ctx context.Context, m *machine) error {
	m.ending.Store(true)
	m.closeAgent()
	if err := m.vm.Kill(ctx); err != nil {
		return err
	}
	if err := n.clear(m.id); err != nil {
		return err
	}
	n.mu.Lock()
	delete(n.machines, m.id)
	n.mu.Unlock()
	n.cap.give(m.id)
	return nil
}

// clear removes the directory and the pin of a VM whose process has ended. The owner file goes last.
func (n *Node) clear(id string) error {
	if err := n.opt.Frozen.Unpin(id); err != nil {
		return err
	}
	dir := n.machineDir(id)
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Name() == ownerFile {
			continue
		}
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return os.RemoveAll(dir)
}

// unreached says that the agent of a sandbox does not answer, with what the guest last wrote to its console.
func (m *machine) unreached(err error, what string) error {
	if spore.CodeOf(err) == spore.CodeConflict {
		return err
	}
	e := spore.Errorf(spore.CodeUnreachable, "%s", what).WithCause(err)
	if tail := consoleTail(m.vm); tail != "" {
		e.Message += "; the console's last lines:\n" + tail
	}
	return e
}
