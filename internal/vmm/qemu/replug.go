package qemu

import (
	"context"
	"errors"
	"os"
	"time"

	spore "github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/vmm"
	"github.com/sporevm/spore/internal/vmm/qemu/qmp"
)

var _ vmm.Replugger = (*machine)(nil)

// nameFrames is what the monitor calls the descriptor of a new cable until a backend has it.
const nameFrames = "frames"

// wakeTime bounds how long QEMU may take to let a guest run on.
const wakeTime = 10 * time.Second

// Replug leads the VM's cable to whoever listens at another socket, or at the same; see vmm.Replugger.
func (m *machine) Replug(ctx context.Context, nic vmm.NIC) error {
	if err := checkNIC(nic); err != nil {
		return err
	}
	if nic.Socket == "" || m.cfg.NIC == nil || m.cfg.NIC.Socket == "" {
		return spore.Errorf(spore.CodeUnsupported, "the network cable of %s cannot be led elsewhere: it is not a socket", m.cfg.ID)
	}
	end, err := m.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	return m.settle(m.replug(ctx, nic))
}

// replug is for the holder of the turn.
func (m *machine) replug(ctx context.Context, nic vmm.NIC) (err error) {
	// The link is up, so this changes nothing; it tells whether there is a hub.
	err = m.qmp.Do(ctx, "set_link", map[string]any{"name": netdevPlug, "up": true}, nil)
	if notThere(err) {
		return spore.Errorf(spore.CodeUnsupported, "the network cable of %s cannot be led elsewhere: an older version of this server started it", m.cfg.ID).WithCause(err)
	}
	if err != nil {
		return err
	}
	cable, err := dialFrames(nic.Socket)
	if err != nil {
		return err
	}
	defer cable.Close()
	if m.State() == vmm.StateRunning {
		// What waits for a socket that takes no more is let go of as the guest stops; else it would wait for good.
		if err := m.qmp.Do(ctx, "stop", nil, nil); err != nil {
			return err
		}
		defer func() {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), wakeTime)
			defer cancel()
			if wakeErr := m.qmp.Do(ctx, "cont", nil, nil); wakeErr != nil {
				err = errors.Join(err, wakeErr)
			}
		}()
	}
	for _, id := range []string{netdevFrames, netdevCable} {
		if err := m.qmp.Do(ctx, "netdev_del", map[string]string{"id": id}, nil); err != nil && !notThere(err) {
			return err
		}
	}
	return m.plugIn(ctx, cable)
}

// plugIn puts a cable on the hub.
func (m *machine) plugIn(ctx context.Context, cable *os.File) error {
	call, err := m.qmp.Send("getfd", map[string]string{"fdname": nameFrames}, cable)
	if err == nil {
		err = call.Wait(ctx, nil)
	}
	if err != nil {
		return err
	}
	if err := m.qmp.Do(ctx, "netdev_add", map[string]string{"type": "socket", "id": netdevFrames, "fd": nameFrames}, nil); err != nil {
		var refusal *qmp.Error
		// It may have been used up.
		if closeErr := m.qmp.Do(ctx, "closefd", map[string]string{"fdname": nameFrames}, nil); closeErr != nil && !errors.As(closeErr, &refusal) {
			err = errors.Join(err, closeErr)
		}
		return err
	}
	return m.qmp.Do(ctx, "netdev_add", map[string]any{"type": "hubport", "id": netdevCable, "hubid": hub, "netdev": netdevFrames}, nil)
}

// notThere says whether QEMU refused because it has no such device.
func notThere(err error) bool {
	var refusal *qmp.Error
	return errors.As(err, &refusal) && refusal.Class == "DeviceNotFound"
}
