package gateway

import (
	"context"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/api"
	"github.com/sporevm/spore/internal/center"
)

func wiringRequest(n api.Network, p api.Ports, l api.Limits) center.Wiring {
	w := center.Wiring{Mode: n.Mode, Ports: portSpecs(p), Limits: limitsOf(l)}
	if n.Egress != nil {
		e := egressOf(*n.Egress)
		w.Egress = &e
	}
	return w
}

func limitsOf(l api.Limits) spore.Limits {
	return spore.Limits{CPUs: l.CPUs, DiskMBps: l.DiskMBps, DiskIOPS: l.DiskIOPS, NetworkInMbps: l.NetworkInMbps, NetworkOutMbps: l.NetworkOutMbps}
}

func limits(l spore.Limits) api.Limits {
	return api.Limits{CPUs: l.CPUs, DiskMBps: l.DiskMBps, DiskIOPS: l.DiskIOPS, NetworkInMbps: l.NetworkInMbps, NetworkOutMbps: l.NetworkOutMbps}
}

func egressOf(e api.Egress) spore.Egress {
	return spore.Egress{Internet: e.Internet, AllowCIDRs: e.AllowCIDRs, DenyCIDRs: e.DenyCIDRs, AllowDomains: e.AllowDomains, Proxy: e.Proxy}
}

// network is how a sandbox is connected, on the wire.
func network(n spore.Network) api.Network {
	out := api.Network{Mode: n.Mode}
	if out.Mode == "" {
		out.Mode = spore.NetworkNone
	}
	if n.Connected() {
		e := n.Egress
		out.Egress = &api.Egress{Internet: e.Internet, AllowCIDRs: e.AllowCIDRs, DenyCIDRs: e.DenyCIDRs, AllowDomains: e.AllowDomains, Proxy: e.Proxy}
	}
	return out
}

func portSpecs(list api.Ports) (out []spore.PortForward) {
	for _, p := range list {
		out = append(out, spore.PortForward{HostAddress: p.HostAddress, HostPort: p.HostPort, GuestPort: p.GuestPort})
	}
	return out
}

func ports(list []spore.PortForward) []api.Port {
	out := make([]api.Port, 0, len(list))
	for _, p := range list {
		p = p.WithDefaults()
		out = append(out, api.Port{HostAddress: p.HostAddress, HostPort: p.HostPort, GuestPort: p.GuestPort, Picked: p.Picked || p.HostPort == 0})
	}
	return out
}

// askedPorts is ports as they would be asked for.
func askedPorts(list []spore.PortForward) (out api.Ports) {
	for _, p := range list {
		out = append(out, api.PortSpec{HostAddress: p.HostAddress, HostPort: p.HostPort, GuestPort: p.GuestPort})
	}
	return out
}

func disksOf(list api.Disks) (out []spore.Disk) {
	for _, d := range list {
		out = append(out, spore.Disk{Path: d.Path, ReadOnly: d.ReadOnly})
	}
	return out
}

func disks(list []spore.Disk) api.Disks {
	out := make(api.Disks, 0, len(list))
	for _, d := range list {
		out = append(out, api.Disk{Path: d.Path, ReadOnly: d.ReadOnly})
	}
	return out
}

func (n *native) UpdateSandbox(ctx context.Context, r api.UpdateSandboxRequestObject) (api.UpdateSandboxResponseObject, error) {
	e, l := r.Body.Egress, r.Body.Limits
	req := center.SandboxUpdate{
		Egress: center.EgressUpdate{Internet: e.Internet, Proxy: e.Proxy},
		Limits: center.LimitsUpdate{
			CPUs: l.CPUs, DiskMBps: l.DiskMBps, DiskIOPS: l.DiskIOPS, NetworkInMbps: l.NetworkInMbps, NetworkOutMbps: l.NetworkOutMbps,
		},
	}
	if r.Body.Labels != nil {
		req.Labels = dict(*r.Body.Labels)
	}
	for _, f := range []struct {
		to   *[]string
		from *[]string
	}{{&req.Egress.AllowCIDRs, e.AllowCIDRs}, {&req.Egress.DenyCIDRs, e.DenyCIDRs}, {&req.Egress.AllowDomains, e.AllowDomains}} {
		if f.from != nil {
			*f.to = list(*f.from)
		}
	}
	s, err := n.svc.UpdateSandbox(ctx, r.ID, req)
	if err != nil {
		return nil, err
	}
	return api.UpdateSandbox200JSONResponse(sandbox(s)), nil
}

func (n *native) ListPorts(ctx context.Context, r api.ListPortsRequestObject) (api.ListPortsResponseObject, error) {
	s, err := n.svc.Sandbox(ctx, r.ID)
	if err != nil {
		return nil, err
	}
	return api.ListPorts200JSONResponse{Ports: ports(s.Ports)}, nil
}

func (n *native) PublishPorts(ctx context.Context, r api.PublishPortsRequestObject) (api.PublishPortsResponseObject, error) {
	s, err := n.svc.PublishPorts(ctx, r.ID, portSpecs(r.Body.Ports))
	if err != nil {
		return nil, err
	}
	return api.PublishPorts200JSONResponse{Ports: ports(s.Ports)}, nil
}

func (n *native) UnpublishPort(ctx context.Context, r api.UnpublishPortRequestObject) (api.UnpublishPortResponseObject, error) {
	s, err := n.svc.UnpublishPorts(ctx, r.ID, []center.PortPlace{{Address: r.Params.HostAddress, Port: r.Params.HostPort}})
	if err != nil {
		return nil, err
	}
	return api.UnpublishPort200JSONResponse{Ports: ports(s.Ports)}, nil
}
