package main

import (
	"encoding/json"
	"regexp"
	"strings"

	"github.com/sporevm/spore/internal/vmm/firecracker/fcdouble/serde"
)

// The bodies of requests, and what GET /vm/config and state files show of them. A nil pointer is a field that was not given.
type (
	machineConfig struct {
		VCPUs      int    `json:"vcpu_count"`
		MemoryMiB  int64  `json:"mem_size_mib"`
		SMT        bool   `json:"smt"`
		Template   string `json:"cpu_template,omitempty"`
		TrackDirty bool   `json:"track_dirty_pages"`
		HugePages  string `json:"huge_pages"`
	}
	machineUpdate struct {
		VCPUs      *int    `json:"vcpu_count"`
		MemoryMiB  *int64  `json:"mem_size_mib"`
		SMT        *bool   `json:"smt"`
		Template   *string `json:"cpu_template"`
		TrackDirty *bool   `json:"track_dirty_pages"`
		HugePages  *string `json:"huge_pages"`
	}
	bootSource struct {
		Kernel string  `json:"kernel_image_path"`
		Initrd *string `json:"initrd_path"`
		Args   *string `json:"boot_args"`
	}
	bucket struct {
		Size   uint64  `json:"size"`
		Burst  *uint64 `json:"one_time_burst"`
		Refill uint64  `json:"refill_time"`
	}
	rateLimiter struct {
		Bandwidth *bucket `json:"bandwidth"`
		Ops       *bucket `json:"ops"`
	}
	driveConfig struct {
		ID       string       `json:"drive_id"`
		PartUUID *string      `json:"partuuid"`
		Root     bool         `json:"is_root_device"`
		Cache    string       `json:"cache_type"`
		ReadOnly *bool        `json:"is_read_only"`
		Path     *string      `json:"path_on_host"`
		Limiter  *rateLimiter `json:"rate_limiter"`
		Engine   *string      `json:"io_engine"`
		Socket   *string      `json:"socket"`
	}
	driveUpdate struct {
		ID      string       `json:"drive_id"`
		Path    *string      `json:"path_on_host"`
		Limiter *rateLimiter `json:"rate_limiter"`
	}
	netConfig struct {
		ID  string       `json:"iface_id"`
		Tap string       `json:"host_dev_name"`
		MAC *string      `json:"guest_mac"`
		MTU *int         `json:"mtu,omitempty"`
		RX  *rateLimiter `json:"rx_rate_limiter"`
		TX  *rateLimiter `json:"tx_rate_limiter"`
	}
	vsockConfig struct {
		ID  *string `json:"vsock_id,omitempty"`
		CID uint32  `json:"guest_cid"`
		UDS string  `json:"uds_path"`
	}
	entropyConfig struct {
		Limiter *rateLimiter `json:"rate_limiter"`
	}
	balloonConfig struct {
		MiB       int64 `json:"amount_mib"`
		Deflate   bool  `json:"deflate_on_oom"`
		Polling   int   `json:"stats_polling_interval_s"`
		Hinting   bool  `json:"free_page_hinting"`
		Reporting bool  `json:"free_page_reporting"`
	}
	serialConfig struct {
		Path *string `json:"serial_out_path"`
	}
	createParams struct {
		Type   string `json:"snapshot_type"`
		State  string `json:"snapshot_path"`
		Memory string `json:"mem_file_path"`
	}
	loadParams struct {
		State   string  `json:"snapshot_path"`
		Memory  *string `json:"mem_file_path"`
		Backend *struct {
			Path string `json:"backend_path"`
			Type string `json:"backend_type"`
		} `json:"mem_backend"`
		Diff     bool `json:"enable_diff_snapshots"`
		Track    bool `json:"track_dirty_pages"`
		Resume   bool `json:"resume_vm"`
		Networks []struct {
			ID  string `json:"iface_id"`
			Tap string `json:"host_dev_name"`
		} `json:"network_overrides"`
		Vsock *struct {
			UDS string `json:"uds_path"`
		} `json:"vsock_override"`
		Clock     bool   `json:"clock_realtime"`
		HugePages string `json:"huge_pages"`
	}
	logParams struct {
		Path  *string `json:"log_path"`
		Level *string `json:"level"`
	}
)

// normal is the limiter as a device keeps it: buckets without capacity or refill do not limit.
func (l *rateLimiter) normal() *rateLimiter {
	if l == nil {
		return nil
	}
	keep := func(b *bucket) *bucket {
		if b == nil || b.Size == 0 || b.Refill == 0 {
			return nil
		}
		c := *b
		if c.Burst != nil && *c.Burst == 0 {
			c.Burst = nil
		}
		return &c
	}
	out := &rateLimiter{keep(l.Bandwidth), keep(l.Ops)}
	if out.Bandwidth == nil && out.Ops == nil {
		return nil
	}
	return out
}

// update is the limiter after a PATCH: what is not given stays, what is given without capacity goes.
func (l *rateLimiter) update(by *rateLimiter) *rateLimiter {
	if by == nil {
		return l
	}
	var out rateLimiter
	if l != nil {
		out = *l
	}
	if by.Bandwidth != nil {
		out.Bandwidth = by.Bandwidth
	}
	if by.Ops != nil {
		out.Ops = by.Ops
	}
	return out.normal()
}

// shapes are the types of bodies in one version.
type shapes struct {
	machine, machineUpdate, boot, drive, driveUpdate, net, netUpdate, vsock, entropy, action, vm, create, load, logger, metrics,
	balloon, balloonUpdate, balloonStats, serial serde.Struct
}

func field(name string, t serde.Type) serde.Field { return serde.Field{Name: name, Type: t} }
func required(name string, t serde.Type) serde.Field {
	return serde.Field{Name: name, Type: t, Required: true}
}
func optional(name string, t serde.Type) serde.Field {
	return serde.Field{Name: name, Type: serde.Optional{Of: t}}
}

// since keeps fields that came with a version.
func (r release) sinceFields(minor int, fields ...serde.Field) []serde.Field {
	if r.since(minor) {
		return fields
	}
	return nil
}

func join(groups ...[]serde.Field) (all []serde.Field) {
	for _, g := range groups {
		all = append(all, g...)
	}
	return all
}

type fields = []serde.Field

var macForm = regexp.MustCompile(`^[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}$`)

func newShapes(r release) *shapes {
	huge := serde.Enum{"None", "2M"}
	if r.since(17) {
		huge = serde.Enum{"None", "Transparent", "2M"}
	}
	template := serde.Enum{"C3", "T2", "T2S", "T2CL", "T2A", "V1N1", "None"}
	tokens := serde.Struct{Name: "TokenBucketConfig", Open: true, Fields: fields{
		required("size", serde.U64), optional("one_time_burst", serde.U64), required("refill_time", serde.U64)}}
	limiter := serde.Struct{Name: "RateLimiterConfig", Fields: fields{optional("bandwidth", tokens), optional("ops", tokens)}}
	mac := serde.Text{Check: func(s string) string {
		if macForm.MatchString(s) {
			return ""
		}
		return "The provided MAC address is invalid."
	}}
	backend := serde.Struct{Name: "MemBackendConfig", Fields: fields{
		required("backend_path", serde.Path), required("backend_type", serde.Enum{"File", "Uffd"})}}
	return &shapes{
		machine: serde.Struct{Name: "MachineConfig", Fields: fields{
			required("vcpu_count", serde.U8), required("mem_size_mib", serde.Usize), field("smt", serde.Bool), optional("cpu_template", template),
			field("track_dirty_pages", serde.Bool), field("huge_pages", huge)}},
		machineUpdate: serde.Struct{Name: "MachineConfigUpdate", Fields: fields{
			optional("vcpu_count", serde.U8), optional("mem_size_mib", serde.Usize), optional("smt", serde.Bool), optional("cpu_template", template),
			optional("track_dirty_pages", serde.Bool), optional("huge_pages", huge)}},
		boot: serde.Struct{Name: "BootSourceConfig", Fields: fields{
			required("kernel_image_path", serde.String), optional("initrd_path", serde.String), optional("boot_args", serde.String)}},
		drive: serde.Struct{Name: "BlockDeviceConfig", Fields: fields{
			required("drive_id", serde.String), optional("partuuid", serde.String), required("is_root_device", serde.Bool),
			field("cache_type", serde.Enum{"Unsafe", "Writeback"}), optional("is_read_only", serde.Bool), optional("path_on_host", serde.String),
			optional("rate_limiter", limiter), optional("io_engine", serde.Enum{"Async", "Sync"}), optional("socket", serde.String)}},
		driveUpdate: serde.Struct{Name: "BlockDeviceUpdateConfig", Fields: fields{
			required("drive_id", serde.String), optional("path_on_host", serde.String), optional("rate_limiter", limiter)}},
		net: serde.Struct{Name: "NetworkInterfaceConfig", Fields: join(
			fields{required("iface_id", serde.String), required("host_dev_name", serde.String), optional("guest_mac", mac)},
			r.sinceFields(16, optional("mtu", serde.U16)),
			fields{optional("rx_rate_limiter", limiter), optional("tx_rate_limiter", limiter)})},
		netUpdate: serde.Struct{Name: "NetworkInterfaceUpdateConfig", Fields: fields{
			required("iface_id", serde.String), optional("rx_rate_limiter", limiter), optional("tx_rate_limiter", limiter)}},
		vsock: serde.Struct{Name: "VsockDeviceConfig", Fields: fields{
			optional("vsock_id", serde.String), required("guest_cid", serde.U32), required("uds_path", serde.String)}},
		entropy: serde.Struct{Name: "EntropyDeviceConfig", Fields: fields{optional("rate_limiter", limiter)}},
		action: serde.Struct{Name: "ActionBody", Fields: fields{
			required("action_type", serde.Enum{"FlushMetrics", "InstanceStart", "SendCtrlAltDel"})}},
		vm: serde.Struct{Name: "Vm", Fields: fields{required("state", serde.Enum{"Paused", "Resumed"})}},
		create: serde.Struct{Name: "CreateSnapshotParams", Fields: fields{
			field("snapshot_type", serde.Enum{"Diff", "Full"}), required("snapshot_path", serde.Path), required("mem_file_path", serde.Path)}},
		load: serde.Struct{Name: "LoadSnapshotConfig", Fields: join(
			fields{required("snapshot_path", serde.Path), optional("mem_file_path", serde.Path), optional("mem_backend", backend),
				field("enable_diff_snapshots", serde.Bool)},
			r.sinceFields(13, field("track_dirty_pages", serde.Bool)),
			fields{field("resume_vm", serde.Bool)},
			r.sinceFields(12, field("network_overrides", serde.List{Of: serde.Struct{Name: "NetworkOverride", Open: true, Fields: fields{
				required("iface_id", serde.String), required("host_dev_name", serde.String)}}})),
			r.sinceFields(16, optional("vsock_override", serde.Struct{Name: "VsockOverride", Open: true, Fields: fields{required("uds_path", serde.String)}})),
			r.sinceFields(15, field("clock_realtime", serde.Bool)),
			r.sinceFields(17, field("huge_pages", serde.Enum{"Snapshot", "None", "Transparent", "2M"})))},
		logger: serde.Struct{Name: "LoggerConfig", Fields: fields{
			optional("log_path", serde.Path), optional("level", serde.String), optional("show_level", serde.Bool),
			optional("show_log_origin", serde.Bool), optional("module", serde.String)}},
		metrics: serde.Struct{Name: "MetricsConfig", Open: r.since(17), Fields: fields{required("metrics_path", serde.Path)}},
		balloon: serde.Struct{Name: "BalloonDeviceConfig", Fields: join(
			fields{required("amount_mib", serde.U32), required("deflate_on_oom", serde.Bool), field("stats_polling_interval_s", serde.U16)},
			r.sinceFields(14, field("free_page_hinting", serde.Bool), field("free_page_reporting", serde.Bool)))},
		balloonUpdate: serde.Struct{Name: "BalloonUpdateConfig", Fields: fields{required("amount_mib", serde.U32)}},
		balloonStats:  serde.Struct{Name: "BalloonUpdateStatsConfig", Fields: fields{required("stats_polling_interval_s", serde.U16)}},
		serial:        serde.Struct{Name: "SerialConfig", Open: r.since(17), Fields: fields{optional("serial_out_path", serde.Path)}},
	}
}

// decode checks a body against a type and reads it into v.
func decode(t serde.Struct, body []byte, v any) error {
	if err := serde.Check(t, body); err != nil {
		return &badRequest{"An error occurred when deserializing the json body of a request: " + err.Error() + "."}
	}
	if err := json.NewDecoder(strings.NewReader(string(body))).Decode(v); err != nil {
		return &badRequest{"An error occurred when deserializing the json body of a request: " + err.Error() + "."}
	}
	return nil
}

// badRequest is what the API server itself refuses, before the VM is asked.
type badRequest struct{ text string }

func (e *badRequest) Error() string { return e.text }
