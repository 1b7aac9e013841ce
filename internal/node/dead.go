package node

import (
	"context"
	"io"
	"net"
	"os"
	"path/filepath"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/vmm"
)

// deadVM stands for a VM that no server has hold of: its process ended while nobody was there to see it, or it cannot be
// taken over and is only there to be ended. The zero deadVM never had a process.
type deadVM struct {
	dir    string
	engine vmm.Engine
}

var errDead = spore.Errorf(spore.CodeConflict, "the VM has ended")

var ended = func() chan struct{} { c := make(chan struct{}); close(c); return c }()

func (deadVM) PID() int                                           { return 0 }
func (deadVM) State() vmm.State                                   { return vmm.StateExited }
func (deadVM) Pause(context.Context) error                        { return errDead }
func (deadVM) Resume(context.Context) error                       { return errDead }
func (deadVM) SaveState(context.Context, *os.File) error          { return errDead }
func (deadVM) Memory() (vmm.Memory, error)                        { return nil, errDead }
func (deadVM) DialPort(context.Context, string) (net.Conn, error) { return nil, errDead }
func (deadVM) Shutdown(context.Context) error                     { return errDead }
func (deadVM) Done() <-chan struct{}                              { return ended }
func (deadVM) Err() error                                         { return errDead }
func (deadVM) Release() error                                     { return nil }

// Kill ends the process if, after all, there is one.
func (d deadVM) Kill(ctx context.Context) error {
	if d.engine == nil {
		return nil
	}
	return d.engine.Clean(ctx, d.dir)
}

// Console reads what the guest wrote while it lived. Engines keep it in a file of this name, in a directory of theirs.
func (d deadVM) Console(limit int) ([]byte, error) {
	logs, err := filepath.Glob(filepath.Join(d.dir, "*", "console.log"))
	if err != nil || len(logs) == 0 {
		return nil, err
	}
	f, err := os.Open(logs[0])
	if err != nil {
		return nil, err
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, err
	}
	from := max(0, size-int64(limit))
	return io.ReadAll(io.NewSectionReader(f, from, size-from))
}
