package node

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

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

	Network spore.Network `json:"network,omitzero"` // that it is connected to
	Limits  spore.Limits  `json:"limits,omitzero"`
	// Governed is whether its processor time was ever bounded: then there is something to remove with it.
	Governed bool `json:"governed,omitempty"`
	// Cut is whether its network was lost and is not known to be whole again.
	Cut bool `json:"cut,omitempty"`
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

	ending   atomic.Bool // set before we end it, so that its exit is no surprise
	retrying atomic.Bool // somebody tries to end it until it has ended

	freeze    sync.Mutex             // one capture at a time
	suspended atomic.Bool            // stands still on purpose; changed under freeze
	adjusting sync.Mutex             // one change of limits or of the network at a time
	failed    atomic.Pointer[string] // why we end it, when its sandbox cannot go on

	held  context.Context // ends when we let go of the VM, whether it ends with that or not
	letGo context.CancelFunc

	agentTurn chan struct{} // held by whoever looks at or changes agent
	agent     *guest.Agent
}

func (n *Node) newMachine(id string, vm vmm.VM, o owner) *machine {
	m := &machine{id: id, node: n, vm: vm, owner: o, agentTurn: make(chan struct{}, 1)}
	m.held, m.letGo = context.WithCancel(context.Background())
	return m
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
// by itself. A guest that does not answer keeps nobody longer than ctx, nor from ending the VM.
func (m *machine) connect(ctx context.Context) (*guest.Agent, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(m.held, func() { cancel(errDead) })()
	select {
	case m.agentTurn <- struct{}{}:
		defer func() { <-m.agentTurn }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	if m.agent != nil {
		return m.agent, nil
	}
	if m.held.Err() != nil {
		return nil, errDead
	}
	a, err := guest.Connect(ctx, m.vm.DialPort, guest.Watcher{
		Runs: func() bool { return m.vm.State() == vmm.StateRunning },
		Silent: func(d time.Duration) {
			m.node.log.Warn("a guest that runs does not answer: its connection is given up", "vm", m.id, "after", d)
		},
	})
	if err != nil {
		return nil, err
	}
	m.agent = a
	return a, nil
}

// closeAgent ends all talk with the guest for good.
func (m *machine) closeAgent() {
	m.letGo()
	m.agentTurn <- struct{}{}
	defer func() { <-m.agentTurn }()
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

// killTimeout bounds how long a hypervisor that was killed may take to be gone.
const killTimeout = 20 * time.Second

// end kills the VM and removes everything it had. It is idempotent. When it fails it goes on being tried until it has
// been done or the node closes: nobody else knows any more that the VM is there.
func (n *Node) end(ctx context.Context, m *machine) error {
	m.ending.Store(true)
	m.closeAgent()
	err := n.endOnce(ctx, m)
	if err != nil && !m.retrying.Swap(true) {
		n.disown(m)
		go n.endLater(m)
	}
	return err
}

// disown notes that a VM which does not end is nobody's: a sandbox must not find it again.
func (n *Node) disown(m *machine) {
	n.mu.Lock()
	m.owner.Sandbox, m.owner.Generation = "", 0
	o := m.owner
	n.machines[m.id] = m
	n.mu.Unlock()
	if err := writeOwner(n.machineDir(m.id), o); err != nil && !errors.Is(err, fs.ErrNotExist) {
		n.log.Error("disowning a VM that does not end", "vm", m.id, "err", err)
	}
}

func (n *Node) endLater(m *machine) {
	for wait := time.Second; ; wait = min(2*wait, time.Minute) {
		select {
		case <-n.closing:
			return
		case <-time.After(wait):
		}
		err := n.endOnce(context.Background(), m)
		if err == nil {
			n.log.Info("a VM that did not end has ended", "vm", m.id)
			return
		}
		n.log.Error("a VM does not end; trying again", "vm", m.id, "err", err)
	}
}

func (n *Node) endOnce(ctx context.Context, m *machine) error {
	ctx, cancel := context.WithTimeout(ctx, killTimeout)
	defer cancel()
	if err := m.vm.Kill(ctx); err != nil {
		return spore.Errorf(spore.CodeUnreachable, "the hypervisor of VM %s does not end", m.id).WithCause(err).
			WithHint("this is tried again until it has ended")
	}
	if err := n.unplugEnded(ctx, m); err != nil {
		return fmt.Errorf("disconnect VM %s: %w", m.id, err)
	}
	if err := n.clear(m.id); err != nil {
		return fmt.Errorf("clear away VM %s: %w", m.id, err)
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

// unreached says that the agent of a sandbox does not answer, with what the guest last wrote to its console. When the
// caller's own context has ended it is not the guest's fault.
func (m *machine) unreached(ctx context.Context, err error, what string) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if spore.CodeOf(err) == spore.CodeConflict {
		return err
	}
	e := spore.Errorf(spore.CodeUnreachable, "%s", what).WithCause(err)
	if tail := consoleTail(m.vm); tail != "" {
		e.Message += "; the console's last lines:\n" + tail
	}
	return e
}
