package main

import (
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/sporevm/spore/internal/vmm/firecracker/fcdouble/rust"
)

// The states that GET / names.
const (
	notStarted = "Not started"
	running    = "Running"
	paused     = "Paused"
)

const (
	onlyBefore = "The requested operation is not supported after starting the microVM."
	onlyAfter  = "The requested operation is not supported before starting the microVM."
)

// machine is the VM that the API makes. Its methods are called one at a time; only the guest runs beside them.
type machine struct {
	rel release
	id  string
	pci bool
	log *logger

	configured bool // something that belongs to booting was set, so nothing may be loaded
	cfg        machineConfig
	boot       bootSource
	kernel     *os.File
	initrd     *os.File
	drives     []*drive
	nics       []*nic
	vsock      *vsock
	entropy    *entropyConfig
	balloon    *balloonConfig
	serial     *string
	metrics    bool

	mem   *memory
	pages *pageServer
	guest *guest

	mu      sync.Mutex
	state   string
	resumed chan struct{} // closed while the VM runs
	end     chan int      // gets the exit code of a VM that ends by itself
}

func newMachine(rel release, id string, pci bool, log *logger) *machine {
	m := &machine{rel: rel, id: id, pci: pci, log: log, state: notStarted, resumed: make(chan struct{}), end: make(chan int, 1)}
	m.cfg = machineConfig{VCPUs: 1, MemoryMiB: 128, HugePages: "None"}
	return m
}

func (m *machine) current() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.state
}

func (m *machine) change(state string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if state == m.state {
		return
	}
	if state == running {
		close(m.resumed)
	} else if m.state == running {
		m.resumed = make(chan struct{})
	}
	m.state = state
}

// waitRunning holds the guest while the VM is paused.
func (m *machine) waitRunning() {
	m.mu.Lock()
	resumed := m.resumed
	m.mu.Unlock()
	<-resumed
}

func (m *machine) started() bool { return m.current() != notStarted }

// config runs what belongs to booting: it is refused once the VM has started, and rules out loading.
func (m *machine) config(do func() reply) reply {
	if m.started() {
		return reply{fault: onlyBefore}
	}
	m.configured = true
	return do()
}

func (m *machine) describe() reply {
	return reply{body: struct {
		ID      string `json:"id"`
		State   string `json:"state"`
		Version string `json:"vmm_version"`
		App     string `json:"app_name"`
	}{m.id, m.current(), m.rel.version, "Firecracker"}}
}

func (m *machine) showVersion() reply {
	return reply{body: map[string]string{"firecracker_version": m.rel.version}}
}

func (m *machine) showMachine() reply { return reply{body: m.cfg} }

func (m *machine) showMetadata() reply {
	if m.started() && m.rel.since(15) {
		return faulted("MMDS error: The MMDS data store is not initialized.")
	}
	return reply{body: struct{}{}}
}

func (m *machine) showConfig() reply {
	all := map[string]any{
		"balloon": m.balloon.show(m.rel), "boot-source": m.boot, "cpu-config": nil, "logger": nil, "machine-config": m.cfg, "metrics": nil,
		"mmds-config": nil, "entropy": m.entropy, "vsock": nil,
	}
	if m.rel.since(14) {
		all["pmem"], all["memory-hotplug"] = []any{}, nil
	}
	drives, nets := []driveConfig{}, []netConfig{}
	for _, d := range m.drives {
		drives = append(drives, d.Config)
	}
	for _, n := range m.nics {
		nets = append(nets, n.Config)
	}
	all["drives"], all["network-interfaces"] = drives, nets
	if m.vsock != nil {
		all["vsock"] = vsockConfig{CID: m.vsock.cfg.CID, UDS: m.vsock.cfg.UDS}
	}
	return reply{body: all}
}

func (m *machine) setBoot(cfg bootSource) reply {
	return m.config(func() reply {
		kernel, err := os.Open(cfg.Kernel)
		if err != nil {
			return faulted("Boot source error: The kernel file cannot be opened: %s", rust.Message(err))
		}
		var initrd *os.File
		if cfg.Initrd != nil {
			if initrd, err = os.Open(*cfg.Initrd); err != nil {
				kernel.Close()
				return faulted("Boot source error: The initrd file cannot be opened due to invalid path or invalid permissions. %s", rust.Message(err))
			}
		}
		if cfg.Args != nil {
			if err := checkCommandLine(*cfg.Args); err != nil {
				return faulted("Boot source error: The kernel command line is invalid: %s", err)
			}
		}
		m.boot, m.kernel, m.initrd = cfg, kernel, initrd
		return reply{}
	})
}

// maxCommandLine is the space that a kernel's command line has.
const maxCommandLine = 2048

func checkCommandLine(text string) error {
	for _, c := range []byte(text) {
		if c < ' ' || c > '~' {
			return say("String contains a non-printable ASCII character.")
		}
	}
	if len(text) >= maxCommandLine {
		return say("Inserting string into cmdline is too large.")
	}
	return nil
}

func (m *machine) putMachine(u machineUpdate) reply {
	return m.config(func() reply {
		no, none := false, "None"
		if u.SMT == nil {
			u.SMT = &no
		}
		if u.TrackDirty == nil {
			u.TrackDirty = &no
		}
		if u.HugePages == nil {
			u.HugePages = &none
		}
		r := m.updateMachine(u)
		r.deprecated = u.Template != nil
		return r
	})
}

func (m *machine) patchMachine(u machineUpdate) reply {
	return m.config(func() reply { return m.updateMachine(u) })
}

func (m *machine) updateMachine(u machineUpdate) reply {
	next := m.cfg
	set(&next.VCPUs, u.VCPUs)
	set(&next.MemoryMiB, u.MemoryMiB)
	set(&next.SMT, u.SMT)
	set(&next.TrackDirty, u.TrackDirty)
	set(&next.HugePages, u.HugePages)
	if u.Template != nil {
		next.Template = strings.TrimPrefix(*u.Template, "None")
	}
	if next.VCPUs == 0 || next.VCPUs > 32 || next.SMT && next.VCPUs > 1 && next.VCPUs%2 == 1 {
		return faulted("Machine config error: The number of vCPUs must be greater than 0, less than 32 and must be 1 or an even number if SMT is enabled.")
	}
	if next.MemoryMiB == 0 || next.HugePages != "None" && next.MemoryMiB%2 == 1 {
		return faulted("Machine config error: The memory size (MiB) is either 0, or not a multiple of the configured page size.")
	}
	if m.balloon != nil && m.balloon.MiB > next.MemoryMiB {
		return faulted("Machine config error: The memory size (MiB) is smaller than the previously set balloon device target size.")
	}
	m.cfg = next
	return reply{}
}

func set[T any](to *T, from *T) {
	if from != nil {
		*to = *from
	}
}

func (m *machine) putDrive(cfg driveConfig) reply {
	if m.started() {
		return m.hotplug()
	}
	return m.config(func() reply {
		at := slices.IndexFunc(m.drives, func(d *drive) bool { return d.Config.ID == cfg.ID })
		if cfg.Root && len(m.drives) > 0 && m.drives[0].Config.Root && at != 0 {
			return faulted("Drive config error: A root block device already exists!")
		}
		d, err := openDrive(cfg)
		if err != nil {
			return faulted("Drive config error: Unable to create the virtio block device: %s", err)
		}
		switch {
		case at >= 0:
			m.drives[at].file.Close()
			m.drives[at] = d
			if at > 0 && cfg.Root {
				m.drives[0], m.drives[at] = m.drives[at], m.drives[0]
			}
		case cfg.Root:
			m.drives = slices.Insert(m.drives, 0, d)
		default:
			m.drives = append(m.drives, d)
		}
		return reply{}
	})
}

// hotplug is what becomes of a device that is put into a VM that has started.
func (m *machine) hotplug() reply {
	switch {
	case !m.rel.since(16):
		return reply{fault: onlyBefore}
	case !m.pci:
		return faulted("PCI is not enabled")
	}
	return faulted("The requested operation is not supported: the stand-in plugs nothing into a VM that has started")
}

func (m *machine) unplug() reply {
	if !m.started() {
		return reply{fault: onlyAfter}
	}
	return m.hotplug()
}

func (m *machine) patchDrive(u driveUpdate) reply {
	if !m.started() {
		return reply{fault: onlyAfter}
	}
	refused := func(why string) reply {
		return faulted("Drive config error: Unable to patch the block device: %s Please verify the request arguments.", why)
	}
	at := slices.IndexFunc(m.drives, func(d *drive) bool { return d.Config.ID == u.ID })
	if at < 0 {
		return refused(m.rel.deviceMissing())
	}
	d := m.drives[at]
	if u.Path == nil && u.Limiter == nil {
		return refused(m.rel.blockError() + "Running method expected different backend.")
	}
	if u.Path != nil {
		if err := d.open(*u.Path); err != nil {
			return refused(m.rel.blockError() + err.Error())
		}
	}
	d.limit(d.Config.Limiter.update(u.Limiter))
	return reply{}
}

func (m *machine) putNet(cfg netConfig) reply {
	if m.started() {
		return m.hotplug()
	}
	return m.config(func() reply {
		at := slices.IndexFunc(m.nics, func(n *nic) bool { return n.Config.ID == cfg.ID })
		for i, n := range m.nics {
			if i != at && cfg.MAC != nil && n.Config.MAC != nil && strings.EqualFold(*cfg.MAC, *n.Config.MAC) {
				return faulted("Network config error: The MAC address is already in use: %s", *cfg.MAC)
			}
		}
		if at >= 0 {
			m.nics[at].close()
			m.nics = slices.Delete(m.nics, at, at+1)
		}
		n, err := openNIC(cfg)
		if err != nil {
			return faulted("Network config error: Could not create the network device: %s", err)
		}
		m.nics = append(m.nics, n)
		return reply{}
	})
}

func (m *machine) patchNet(u netConfig) reply {
	if !m.started() {
		return reply{fault: onlyAfter}
	}
	for _, n := range m.nics {
		if n.Config.ID == u.ID {
			n.Config.RX, n.Config.TX = n.Config.RX.update(u.RX), n.Config.TX.update(u.TX)
			return reply{}
		}
	}
	return faulted("Network config error: Unable to update the net device: %s", m.rel.deviceMissing())
}

func (m *machine) putVsock(cfg vsockConfig) reply {
	return m.config(func() reply {
		if m.vsock != nil {
			old := m.vsock
			m.vsock = nil
			old.close()
			if err := os.Remove(old.cfg.UDS); err != nil {
				return faulted("Vsock config error: Cannot create backend for vsock device: Error binding to the host-side Unix socket: %s", rust.Message(err))
			}
		}
		v, err := bindVsock(cfg)
		if err != nil {
			return faulted("Vsock config error: Cannot create backend for vsock device: Error binding to the host-side Unix socket: %s", rust.Message(err))
		}
		m.vsock = v
		return reply{deprecated: cfg.ID != nil}
	})
}

func (m *machine) putEntropy(cfg entropyConfig) reply {
	return m.config(func() reply {
		cfg.Limiter = cfg.Limiter.normal()
		m.entropy = &cfg
		return reply{}
	})
}

func (m *machine) putLogger(p logParams) reply {
	if m.started() {
		return reply{fault: onlyBefore}
	}
	if p.Level != nil && !validLevel(*p.Level) {
		return faulted("Logger error: Invalid log level: %s", *p.Level)
	}
	if p.Path != nil {
		if err := m.log.open(*p.Path); err != nil {
			return faulted("Logger error: Failed to open target file: %s", rust.Message(err))
		}
	}
	return reply{}
}

func (m *machine) putMetrics(p map[string]any) reply {
	if m.started() {
		return reply{fault: onlyBefore}
	}
	if m.metrics {
		return faulted("Metrics error: Cannot initialize the metrics system due to bad user input: Reinitialization of metrics not allowed.")
	}
	f, err := m.rel.openSink(p["metrics_path"].(string))
	if err != nil {
		return faulted("Metrics error: Cannot initialize the metrics system due to bad user input: %s", rust.Message(err))
	}
	m.metrics = true
	f.Close()
	return reply{}
}

func (m *machine) putSerial(p serialConfig) reply {
	if m.started() {
		return reply{fault: onlyBefore}
	}
	m.serial = p.Path
	return reply{}
}
