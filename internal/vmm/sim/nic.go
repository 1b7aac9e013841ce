package sim

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"

	spore "github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/vmm"
)

// PortFrames is what Options.Guest calls the network device. Each Ethernet frame comes after its length in 4 bytes,
// big-endian; Guest.SendFrame sends one.
const PortFrames = "sim.frames"

func checkNIC(nic vmm.NIC) error {
	mac, err := net.ParseMAC(nic.MAC)
	switch {
	case err != nil || len(mac) != 6 || mac[0]&1 != 0:
		return spore.Invalidf("nic.mac", "%q is not the address of a network device", nic.MAC)
	case nic.Tap != "" && nic.Socket != "":
		return spore.Invalidf("nic", "a network device has one cable, not two")
	case nic.NetNS != "" && nic.Tap == "":
		return spore.Invalidf("nic.netNS", "a network namespace is of no use without a TAP device")
	case nic.Tap != "":
		return spore.Errorf(spore.CodeUnsupported, "the simulator has no TAP devices")
	}
	return nil
}

// plug connects a network device; nil when it leads nowhere.
func plug(nic *vmm.NIC) (net.Conn, error) {
	if nic == nil || nic.Socket == "" {
		return nil, nil
	}
	refused := func(err error) error {
		code := spore.CodeUnreachable
		if errors.Is(err, fs.ErrNotExist) {
			code = spore.CodeNotFound
		}
		return spore.Errorf(code, "nic.socket: nothing takes the VM's network traffic at %s", nic.Socket).WithCause(err)
	}
	dir, err := os.Open(filepath.Dir(nic.Socket))
	if err != nil {
		return nil, refused(err)
	}
	defer dir.Close()
	conn, err := net.Dial("unix", fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), filepath.Base(nic.Socket)))
	if err != nil {
		return nil, refused(err)
	}
	return conn, nil
}
