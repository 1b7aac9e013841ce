package firecracker

import "context"

// The bodies of the requests that the engine sends, named as Firecracker's API description names them.

type machineConfiguration struct {
	VCPUCount       int    `json:"vcpu_count"`
	MemSizeMiB      int    `json:"mem_size_mib"`
	SMT             bool   `json:"smt"`
	TrackDirtyPages bool   `json:"track_dirty_pages"`
	HugePages       string `json:"huge_pages,omitempty"`
}

type bootSource struct {
	KernelImagePath string `json:"kernel_image_path"`
	InitrdPath      string `json:"initrd_path,omitempty"`
	BootArgs        string `json:"boot_args,omitempty"`
}

type drive struct {
	DriveID      string       `json:"drive_id"`
	PathOnHost   string       `json:"path_on_host"`
	IsRootDevice bool         `json:"is_root_device"`
	IsReadOnly   bool         `json:"is_read_only"`
	CacheType    string       `json:"cache_type,omitempty"`
	IOEngine     string       `json:"io_engine,omitempty"`
	RateLimiter  *rateLimiter `json:"rate_limiter,omitempty"`
}

type partialDrive struct {
	DriveID     string       `json:"drive_id"`
	RateLimiter *rateLimiter `json:"rate_limiter,omitempty"`
}

type rateLimiter struct {
	Bandwidth *tokenBucket `json:"bandwidth,omitempty"` // bytes
	Ops       *tokenBucket `json:"ops,omitempty"`
}

// tokenBucket refills Size tokens in RefillTime milliseconds. Zeros take the limit away.
type tokenBucket struct {
	Size       int64 `json:"size"`
	RefillTime int64 `json:"refill_time"`
}

type networkInterface struct {
	IfaceID     string `json:"iface_id"`
	GuestMAC    string `json:"guest_mac,omitempty"`
	HostDevName string `json:"host_dev_name"`
}

type vsock struct {
	GuestCID uint32 `json:"guest_cid"`
	UDSPath  string `json:"uds_path"`
}

type entropyDevice struct{}

type instanceActionInfo struct {
	ActionType string `json:"action_type"`
}

const (
	actionStart        = "InstanceStart"
	actionCtrlAltDel   = "SendCtrlAltDel"
	stateResumed       = "Resumed"
	statePaused        = "Paused"
	snapshotFull       = "Full"
	snapshotDiff       = "Diff"
	backendFile        = "File"
	backendUffd        = "Uffd"
	instanceRunning    = "Running"
	instanceNotStarted = "Not started"
	pagesTransparent   = "Transparent"
)

type vmState struct {
	State string `json:"state"`
}

type snapshotCreateParams struct {
	SnapshotType string `json:"snapshot_type"`
	SnapshotPath string `json:"snapshot_path"`
	MemFilePath  string `json:"mem_file_path"`
}

type snapshotLoadParams struct {
	SnapshotPath        string            `json:"snapshot_path"`
	MemBackend          memoryBackend     `json:"mem_backend"`
	EnableDiffSnapshots bool              `json:"enable_diff_snapshots,omitempty"` // before 1.13
	TrackDirtyPages     bool              `json:"track_dirty_pages,omitempty"`     // since 1.13
	ResumeVM            bool              `json:"resume_vm"`
	NetworkOverrides    []networkOverride `json:"network_overrides,omitempty"`
	ClockRealtime       bool              `json:"clock_realtime,omitempty"`
	HugePages           string            `json:"huge_pages,omitempty"`
}

type memoryBackend struct {
	BackendType string `json:"backend_type"`
	BackendPath string `json:"backend_path"`
}

type networkOverride struct {
	IfaceID     string `json:"iface_id"`
	HostDevName string `json:"host_dev_name"`
}

type instanceInfo struct {
	AppName    string `json:"app_name"`
	ID         string `json:"id"`
	State      string `json:"state"`
	VMMVersion string `json:"vmm_version"`
}

func (c *client) put(ctx context.Context, path string, body any) error {
	return c.do(ctx, "PUT", path, body, nil)
}

func (c *client) patch(ctx context.Context, path string, body any) error {
	return c.do(ctx, "PATCH", path, body, nil)
}

func (c *client) instance(ctx context.Context) (info instanceInfo, err error) {
	err = c.do(ctx, "GET", "/", nil, &info)
	return info, err
}

func (c *client) putMachine(ctx context.Context, m machineConfiguration) error {
	return c.put(ctx, "/machine-config", m)
}

func (c *client) putBootSource(ctx context.Context, b bootSource) error {
	return c.put(ctx, "/boot-source", b)
}

func (c *client) putDrive(ctx context.Context, d drive) error {
	return c.put(ctx, "/drives/"+d.DriveID, d)
}

func (c *client) patchDrive(ctx context.Context, d partialDrive) error {
	return c.patch(ctx, "/drives/"+d.DriveID, d)
}

func (c *client) putNetwork(ctx context.Context, n networkInterface) error {
	return c.put(ctx, "/network-interfaces/"+n.IfaceID, n)
}

func (c *client) putVsock(ctx context.Context, v vsock) error { return c.put(ctx, "/vsock", v) }

func (c *client) putEntropy(ctx context.Context) error {
	return c.put(ctx, "/entropy", entropyDevice{})
}

func (c *client) act(ctx context.Context, action string) error {
	return c.put(ctx, "/actions", instanceActionInfo{action})
}

func (c *client) setState(ctx context.Context, state string) error {
	return c.patch(ctx, "/vm", vmState{state})
}

func (c *client) createSnapshot(ctx context.Context, p snapshotCreateParams) error {
	return c.put(ctx, "/snapshot/create", p)
}

func (c *client) loadSnapshot(ctx context.Context, p snapshotLoadParams) error {
	return c.put(ctx, "/snapshot/load", p)
}
