package agent

import (
	"encoding/hex"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"
)

// Identity is what makes a thawed sandbox different from every other thaw of the same state. Empty fields leave things
// as they are.
type Identity struct {
	SandboxID  string `json:"sandboxId,omitempty"`
	TemplateID string `json:"templateId,omitempty"`
	Hostname   string `json:"hostname,omitempty"`
	MachineID  string `json:"machineId,omitempty"` // 32 hex digits
	// Entropy from the host, base64 in JSON. It is credited, so it must be random and never used twice.
	Entropy []byte `json:"entropy,omitempty"`
	// UnixNano is the right time at the moment when this arrives.
	UnixNano  int64             `json:"unixNano,omitempty"`
	Env       map[string]string `json:"env,omitempty"` // added to the environment of later processes
	Addresses []Address         `json:"addresses,omitempty"`
	// Nameservers replace those of /etc/resolv.conf.
	Nameservers []string `json:"nameservers,omitempty"`
	// DropConnections ends the TCP connections to other machines that the frozen state had open.
	DropConnections bool `json:"dropConnections,omitempty"`
}

// Address is the configuration of one network interface.
type Address struct {
	Interface string `json:"interface"`         // such as "eth0"
	CIDR      string `json:"cidr"`              // IPv4 address and prefix length
	Gateway   string `json:"gateway,omitempty"` // default route
	MAC       string `json:"mac,omitempty"`
	MTU       int    `json:"mtu,omitempty"`
}

// Facts are what the agent says about the sandbox it has just given an identity.
type Facts struct {
	Agent    string `json:"agent"` // Version
	BootID   string `json:"bootId"`
	Kernel   string `json:"kernel"` // release
	Hostname string `json:"hostname"`
	UnixNano int64  `json:"unixNano"` // the guest's clock as it answers
	UptimeMS int64  `json:"uptimeMs"`
	// Dropped counts the inherited connections that were ended.
	Dropped int `json:"dropped,omitempty"`
	// Warnings tell what could not be done and is not vital.
	Warnings []string `json:"warnings,omitempty"`
}

// System is what only root in a guest may do. Tests put something harmless in its place.
type System interface {
	// AddEntropy credits random bytes to the kernel's pool and reseeds its generator.
	AddEntropy(random []byte) error
	SetClock(t time.Time) error
	SetHostname(name string) error
	SetMachineID(id string) error
	SetAddress(a Address) error
	SetNameservers(servers []string) error
	// DropConnections ends TCP connections that do not stay within the guest and returns how many.
	DropConnections() (int, error)
	// Sync writes all file systems out.
	Sync()
	// Facts fills in what the kernel knows.
	Facts(*Facts) error
}

var hostnameForm = regexp.MustCompile(`^[A-Za-z0-9](?:[A-Za-z0-9.-]{0,62}[A-Za-z0-9])?$`)

func (id *Identity) validate() error {
	if id.Hostname != "" && !hostnameForm.MatchString(id.Hostname) {
		return fmt.Errorf("hostname: %q is not a host name", id.Hostname)
	}
	if id.MachineID != "" {
		if b, err := hex.DecodeString(id.MachineID); err != nil || len(b) != 16 || strings.ToLower(id.MachineID) != id.MachineID {
			return errors.New("machineId: must be 32 lower-case hex digits")
		}
	}
	for k, v := range id.Env {
		if k == "" || strings.ContainsAny(k, "=\x00") || strings.Contains(v, "\x00") {
			return fmt.Errorf("env: %q is not the name of an environment variable, or its value holds a zero byte", k)
		}
	}
	return nil
}

// greet gives the sandbox its identity. Entropy and clock come first: whatever runs in the guest has been running since
// the thaw. What makes two thaws alike if it fails is an error, the rest a warning.
func (a *Agent) greet(id Identity) (Facts, error) {
	facts := Facts{Agent: Version}
	if err := id.validate(); err != nil {
		return facts, invalidf("%v", err)
	}
	if len(id.Entropy) > 0 {
		if err := a.system.AddEntropy(id.Entropy); err != nil {
			return facts, fmt.Errorf("entropy: %w", err)
		}
	}
	if id.UnixNano != 0 {
		if err := a.system.SetClock(time.Unix(0, id.UnixNano)); err != nil {
			return facts, fmt.Errorf("clock: %w", err)
		}
	}
	if id.MachineID != "" {
		if err := a.system.SetMachineID(id.MachineID); err != nil {
			return facts, fmt.Errorf("machine id: %w", err)
		}
	}
	if id.Hostname != "" {
		if err := a.system.SetHostname(id.Hostname); err != nil {
			return facts, fmt.Errorf("hostname: %w", err)
		}
	}
	if id.DropConnections {
		n, err := a.system.DropConnections()
		facts.Dropped = n
		if err != nil {
			facts.Warnings = append(facts.Warnings, "inherited connections: "+err.Error())
		}
	}
	for _, addr := range id.Addresses {
		if err := a.system.SetAddress(addr); err != nil {
			return facts, fmt.Errorf("address of %s: %w", addr.Interface, err)
		}
	}
	if len(id.Nameservers) > 0 {
		if err := a.system.SetNameservers(id.Nameservers); err != nil {
			return facts, fmt.Errorf("nameservers: %w", err)
		}
	}
	a.settings.merge(id.environ())
	if err := a.system.Facts(&facts); err != nil {
		return facts, err
	}
	return facts, nil
}

func (id *Identity) environ() map[string]string {
	env := map[string]string{}
	if id.SandboxID != "" {
		env["SPORE_SANDBOX_ID"] = id.SandboxID
	}
	if id.TemplateID != "" {
		env["SPORE_TEMPLATE_ID"] = id.TemplateID
	}
	for k, v := range id.Env {
		env[k] = v
	}
	return env
}
