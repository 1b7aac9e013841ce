package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
)

// etherType marks the suite's frames: the one that is set aside for local experiments.
const etherType = 0x88b5

// answerFrames returns each frame of the suite to its sender, until the device is gone.
func (g *guest) answerFrames(n *nic) {
	buf := make([]byte, 4096)
	for {
		k, err := n.tap.Read(buf)
		if err != nil {
			return
		}
		if k < vnetHeader+14 || binary.BigEndian.Uint16(buf[vnetHeader+12:]) != etherType {
			continue
		}
		frame := bytes.Clone(buf[vnetHeader:k])
		copy(frame, frame[6:12])
		copy(frame[6:], n.address())
		g.transmit(n, frame)
	}
}

func (n *nic) address() net.HardwareAddr {
	if n.Config.MAC != nil {
		if mac, err := net.ParseMAC(*n.Config.MAC); err == nil {
			return mac
		}
	}
	return make(net.HardwareAddr, 6)
}

// transmit sends a frame. Like a real device it does not say whether the frame went anywhere.
func (g *guest) transmit(n *nic, frame []byte) {
	g.step(func() (int, error) { return n.tap.Write(append(make([]byte, vnetHeader), frame...)) })
}

func (g *guest) sendFrame(seed uint64) error {
	if len(g.m.nics) == 0 {
		return errors.New("there is no network device")
	}
	n := g.m.nics[0]
	frame := append([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, n.address()...)
	frame = binary.BigEndian.AppendUint16(frame, etherType)
	frame = binary.BigEndian.AppendUint64(frame, seed)
	g.transmit(n, append(frame, make([]byte, 60-len(frame))...))
	return nil
}

// nicAddress names the network device as a guest's kernel does.
func (g *guest) nicAddress() string {
	if len(g.m.nics) == 0 {
		return "none"
	}
	return "eth0=" + g.m.nics[0].address().String()
}
