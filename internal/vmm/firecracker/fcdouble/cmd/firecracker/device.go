package main

import (
	"io"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/sporevm/spore/internal/vmm/firecracker/fcdouble/rust"
)

// drive is a block device with its file open.
type drive struct {
	Config  driveConfig `json:"config"`
	Sectors int64       `json:"sectors"`
	file    *os.File
	pace    pace
}

func (d *drive) limit(l *rateLimiter) {
	d.Config.Limiter = l
	d.pace.change(l)
}

// openDrive opens the file of a drive. The error is worded as a BlockError.
func openDrive(cfg driveConfig) (*drive, error) {
	if cfg.Path == nil || cfg.Socket != nil {
		return nil, say("Invalid block config.")
	}
	d := &drive{Config: cfg}
	if d.Config.Cache == "" {
		d.Config.Cache = "Unsafe"
	}
	if d.Config.ReadOnly == nil {
		d.Config.ReadOnly = new(bool)
	}
	if d.Config.Engine == nil {
		sync := "Sync"
		d.Config.Engine = &sync
	}
	d.limit(cfg.Limiter.normal())
	if err := d.open(*cfg.Path); err != nil {
		return nil, err
	}
	return d, nil
}

// open takes another file for the drive.
func (d *drive) open(path string) error {
	flag := os.O_RDWR
	if *d.Config.ReadOnly {
		flag = os.O_RDONLY
	}
	f, err := os.OpenFile(path, flag, 0)
	var size int64
	if err == nil {
		size, err = f.Seek(0, io.SeekEnd)
	}
	if err != nil {
		return say("Virtio backend error: Error manipulating the backing file: %s %s", rust.Message(err), path)
	}
	if d.file != nil {
		d.file.Close()
	}
	d.file, d.Config.Path, d.Sectors = f, &path, size>>9
	return nil
}

// nic is a network device with its TAP open.
type nic struct {
	Config netConfig `json:"config"`
	tap    *os.File
}

const (
	vnetHeader   = 12
	tunOffloads  = unix.TUN_F_CSUM | unix.TUN_F_UFO | unix.TUN_F_TSO4 | unix.TUN_F_TSO6
	tunSetHeader = 0x400454d8 // TUNSETVNETHDRSZ
)

// openNIC attaches to a TAP by its name, making it when it is not there and this process may. The error is worded as a NetError.
func openNIC(cfg netConfig) (*nic, error) {
	cfg.RX, cfg.TX = cfg.RX.normal(), cfg.TX.normal()
	if cfg.MTU != nil && *cfg.MTU < 68 {
		return nil, say("MTU %d is out of range [68, 65535]", *cfg.MTU)
	}
	if len(cfg.Tap) >= unix.IFNAMSIZ {
		return nil, say("Open tap device failed: Invalid interface name")
	}
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, say("Open tap device failed: Couldn't open /dev/net/tun: %s", rust.Message(err))
	}
	req, err := unix.NewIfreq(cfg.Tap)
	if err == nil {
		req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
	}
	if err != nil {
		unix.Close(fd)
		return nil, say("Open tap device failed: Error while creating ifreq structure: %s. Invalid TUN/TAP Backend provided by %s. "+
			"Check our documentation on setting up the network devices.", rust.Message(err), cfg.Tap)
	}
	header := int32(vnetHeader)
	if err := unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, tunOffloads); err != nil {
		unix.Close(fd)
		return nil, say("Open tap device failed: Error while setting the offload flags: %s", rust.Message(err))
	}
	if _, _, no := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), tunSetHeader, uintptr(unsafe.Pointer(&header))); no != 0 {
		unix.Close(fd)
		return nil, say("Setting vnet header size failed: Error while setting size of the vnet header: %s", rust.Message(no))
	}
	return &nic{Config: cfg, tap: os.NewFile(uintptr(fd), cfg.Tap)}, nil
}

func (n *nic) close() {
	if n != nil {
		n.tap.Close()
	}
}
