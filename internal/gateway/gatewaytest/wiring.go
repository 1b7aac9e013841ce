package gatewaytest

import (
	"context"
	"slices"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/center"
)

// firstPort is the host port that is picked for guest port 0.
const firstPort = 40000

// pick fills in the host ports that a node would pick.
func pick(ports []spore.PortForward) []spore.PortForward {
	ports = slices.Clone(ports)
	for i, p := range ports {
		if p = p.WithDefaults(); p.HostPort == 0 {
			p.HostPort, p.Picked = firstPort+p.GuestPort%(65536-firstPort), true
		}
		ports[i] = p
	}
	return ports
}

func (s *Service) UpdateSandbox(_ context.Context, id string, req center.SandboxUpdate) (*spore.Sandbox, error) {
	return s.change("UpdateSandbox", id, func(b *spore.Sandbox) error {
		if req.Labels != nil {
			b.Labels = req.Labels
		}
		b.Limits = req.Limits.Apply(b.Limits)
		b.Network.Egress = req.Egress.Apply(b.Network.Egress)
		if err := b.Network.Validate(); err != nil {
			return err
		}
		return b.Limits.Validate()
	})
}

func (s *Service) PublishPorts(_ context.Context, id string, add []spore.PortForward) (*spore.Sandbox, error) {
	return s.change("PublishPorts", id, func(b *spore.Sandbox) error {
		all := append(slices.Clone(b.Ports), pick(add)...)
		if err := spore.ValidatePorts(all); err != nil {
			return err
		}
		b.Ports = all
		return nil
	})
}

func (s *Service) UnpublishPorts(_ context.Context, id string, places []center.PortPlace) (*spore.Sandbox, error) {
	return s.change("UnpublishPorts", id, func(b *spore.Sandbox) error {
		for _, at := range places {
			before := len(b.Ports)
			b.Ports = slices.DeleteFunc(slices.Clone(b.Ports), func(p spore.PortForward) bool {
				return p.HostPort == at.Port && (at.Address == "" || p.HostAddress == at.Address)
			})
			if len(b.Ports) == before {
				return spore.Errorf(spore.CodeNotFound, "sandbox %s publishes nothing on port %d of the host", id, at.Port)
			}
		}
		return nil
	})
}
