package fcdouble_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// step is a request, or something done between requests. $D stands for the directory.
type step struct {
	method, path, body string
	before             func(t testing.TB, dir string)
	since              int  // minor version that first has it
	dies               bool // the VMM ends after its answer
}

// script is what one VMM is asked, from its start on. One with snapshot begins where such a VM was saved before.
type script struct {
	name     string
	snapshot bool
	steps    []step
}

const (
	start  = `{"action_type":"InstanceStart"}`
	pause  = `{"state":"Paused"}`
	resume = `{"state":"Resumed"}`
)

func put(path, body string) step   { return step{method: "PUT", path: path, body: body} }
func patch(path, body string) step { return step{method: "PATCH", path: path, body: body} }
func get(path string) step         { return step{method: "GET", path: path} }

// booting configures and starts a small VM.
var booting = []step{
	put("/machine-config", `{"vcpu_count":1,"mem_size_mib":16,"track_dirty_pages":true}`),
	put("/boot-source", `{"kernel_image_path":"$D/kernel","boot_args":"console=ttyS0 reboot=k panic=1"}`),
	put("/drives/disk", `{"drive_id":"disk","is_root_device":false,"path_on_host":"$D/disk","rate_limiter":{"bandwidth":{"size":1000,"refill_time":100}}}`),
	put("/vsock", `{"guest_cid":3,"uds_path":"$D/v.sock"}`),
	put("/actions", start),
}

func after(steps []step, more ...step) []step { return append(append([]step(nil), steps...), more...) }

func load(more string) step {
	return put("/snapshot/load", `{"snapshot_path":"$D/state","mem_backend":{"backend_type":"File","backend_path":"$D/memory"}`+more+`}`)
}

// noSocket removes the vsock socket that a VM has left.
func noSocket(t testing.TB, dir string) { must(t, os.Remove(filepath.Join(dir, "v.sock"))) }

func (s step) with(before func(testing.TB, string)) step { s.before = before; return s }
func (s step) from(minor int) step                       { s.since = minor; return s }
func (s step) fatal() step                               { s.dies = true; return s }

// damage changes the state file.
func damage(edit func([]byte) []byte) func(testing.TB, string) {
	return func(t testing.TB, dir string) {
		noSocket(t, dir)
		path := filepath.Join(dir, "state")
		text, err := os.ReadFile(path)
		must(t, err)
		write(t, path, edit(bytes.Clone(text)))
	}
}

func one(name string, s step) script { return script{name: name, snapshot: true, steps: []step{s}} }

var scripts = []script{
	{name: "before the start", steps: []step{
		get("/"), get("/version"), get("/machine-config"), get("/vm/config"), get("/vm"), get("/nope"), get("/balloon"), get("/mmds"),
		{method: "GET", path: "/", body: "{}"}, put("/actions", start), patch("/vm", pause), patch("/vm", resume),
		put("/snapshot/create", `{"snapshot_path":"$D/s","mem_file_path":"$D/m"}`), patch("/drives/disk", `{"drive_id":"disk"}`),
		patch("/network-interfaces/eth0", `{"iface_id":"eth0"}`), put("/actions", `{"action_type":"FlushMetrics"}`),
		put("/actions", `{"action_type":"SendCtrlAltDel"}`), put("/actions", `{"action_type":"Other"}`), put("/actions", ""), patch("/vm", ""),
		put("/nope", "{}"), patch("/nope", "{}"), put("/snapshot/nope", "{}"), put("/snapshot", "{}"), patch("/balloon", `{"amount_mib":1}`),
		step{method: "DELETE", path: "/drives/disk"}.from(16), step{method: "DELETE", path: "/nope"},
		get("/balloon/statistics"),
	}},
	{name: "machine", steps: []step{
		put("/machine-config", `{"vcpu_count":"x"}`), put("/machine-config", `{"vcpu_count":1}`), put("/machine-config", `{"vcpu_count":300,"mem_size_mib":1}`),
		put("/machine-config", `{"vcpu_count":33,"mem_size_mib":1}`), put("/machine-config", `{"vcpu_count":0,"mem_size_mib":1}`),
		put("/machine-config", `{"vcpu_count":1,"mem_size_mib":0}`), put("/machine-config", `{"vcpu_count":3,"mem_size_mib":64,"smt":true}`),
		put("/machine-config", `{"vcpu_count":3,"mem_size_mib":64,"huge_pages":"1G"}`), put("/machine-config", `{"vcpu_count":3,"mem_size_mib":63,"huge_pages":"2M"}`),
		put("/machine-config", `{"vcpu_count":1,"mem_size_mib":1,"foo":3}`), put("/machine-config", `{"vcpu_count":1,"mem_size_mib":1`),
		put("/machine-config", `x`), put("/machine-config", ``), put("/machine-config", `3`), put("/machine-config", `{"vcpu_count":1.5,"mem_size_mib":64}`),
		put("/machine-config", `{"vcpu_count":-1,"mem_size_mib":64}`), put("/machine-config", `{"vcpu_count":[],"mem_size_mib":64}`),
		put("/machine-config", `{"vcpu_count":{},"mem_size_mib":64}`), put("/machine-config", `{"vcpu_count":true,"mem_size_mib":64}`),
		put("/machine-config", `{"vcpu_count":null,"mem_size_mib":64}`), put("/machine-config", `{"vcpu_count":3,"mem_size_mib":64,}`),
		put("/machine-config", `{"vcpu_count" 3}`), put("/machine-config", `{vcpu_count:3}`), put("/machine-config", `{"vcpu_count":01}`),
		put("/machine-config", "{\"vcpu_count\":1,\n \"mem_size_mib\":\"y\"}"), put("/machine-config", `{"vcpu_count":1,"vcpu_count":2,"mem_size_mib":64}`),
		put("/machine-config", `{"vcpu_count":1 "mem_size_mib":64}`), put("/machine-config", `{"vcpu_count":tru}`), put("/machine-config", `{"vcpu_count":1e2,"mem_size_mib":64}`),
		put("/machine-config", `{"vcpu_count":"`), put("/machine-config", `{"vcpu_count":1,`), put("/machine-config", `{"vcpu_count"`),
		patch("/machine-config", `{}`), patch("/machine-config", `{"mem_size_mib":32}`), get("/machine-config"),
		put("/machine-config", `{"vcpu_count":2,"mem_size_mib":64,"cpu_template":"T2"}`), get("/machine-config"),
		put("/machine-config", `{"vcpu_count":2,"mem_size_mib":64,"cpu_template":"None","track_dirty_pages":true}`), get("/machine-config"),
	}},
	{name: "boot source", steps: []step{
		put("/boot-source", `{"kernel_image_path":"/nope"}`), put("/boot-source", `{"kernel_image_path":"$D/kernel","initrd_path":"/nope"}`),
		put("/boot-source", `{"boot_args":"x"}`), put("/boot-source", `{"kernel_image_path":3}`), put("/boot-source", `{"kernel_image_path":"$D/kernel","x":1}`),
		put("/boot-source", `{"kernel_image_path":"$D/text"}`), put("/actions", start), get("/"),
		put("/boot-source", `{"kernel_image_path":"$D/kernel","initrd_path":"$D/text","boot_args":"a=b"}`), get("/vm/config"),
	}},
	{name: "drives", steps: []step{
		put("/drives/a", `{"drive_id":"b","is_root_device":false,"path_on_host":"$D/disk"}`), put("/drives/a", `{"drive_id":"a","is_root_device":false,"path_on_host":"/nope"}`),
		put("/drives/a", `{"drive_id":"a","is_root_device":false}`), put("/drives/a-b", `{}`), put("/drives", `{}`), put("/drives/a", `{"drive_id":"a","is_root_device":true,"path_on_host":"$D"}`),
		put("/drives/a", `{"drive_id":"a","is_root_device":true,"path_on_host":"$D/disk"}`), put("/drives/b", `{"drive_id":"b","is_root_device":true,"path_on_host":"$D/disk"}`),
		put("/drives/a", `{"drive_id":"a","is_root_device":null,"path_on_host":"$D/disk"}`), put("/drives/a", `{"drive_id":"a","is_root_device":true,"path_on_host":null}`),
		put("/drives/a", `{"drive_id":"a","is_root_device":true,"path_on_host":"$D/disk"} x`), put("/drives/a", `{"drive_id":"a","drive_id":"b"}`),
		put("/drives/a", `{"drive_id":"a","is_root_device":true,"path_on_host":"$D/disk","io_engine":"Foo"}`), put("/drives/a", `{"drive_id":"a","cache_type":3}`),
		put("/drives/a", `{"drive_id":"a","is_root_device":true,"path_on_host":"$D/disk","rate_limiter":{"bandwidth":{"size":1}}}`),
		put("/drives/a", `{"drive_id":"a","is_root_device":true,"path_on_host":"$D/disk","rate_limiter":{"foo":{"size":1}}}`),
		put("/drives/a", `{"drive_id":"a","is_root_device":true,"path_on_host":"$D/disk","rate_limiter":3}`),
		put("/drives/a", `{"drive_id":"a","is_root_device":true,"path_on_host":"$D/disk","rate_limiter":{"bandwidth":{"size":-1,"refill_time":100}}}`),
		put("/drives/c", `{"drive_id":"c","is_root_device":false,"is_read_only":true,"path_on_host":"$D/rootfs","cache_type":"Writeback","rate_limiter":{"ops":{"size":10,"one_time_burst":5,"refill_time":100},"bandwidth":{"size":0,"refill_time":0}}}`),
		get("/vm/config"), load(""),
	}},
	{name: "other devices", steps: []step{
		put("/vsock", `{"guest_cid":3,"uds_path":"/nope/x"}`), put("/vsock", `{"guest_cid":3,"uds_path":"$D/v.sock"}`), put("/vsock", `{"guest_cid":4,"uds_path":"$D/v.sock","vsock_id":"x"}`),
		put("/vsock", `{"guest_cid":-3,"uds_path":"$D/v.sock"}`), put("/vsock", `{"guest_cid":3}`), put("/vsock", `{"guest_cid":3,"uds_path":"$D/disk"}`),
		put("/network-interfaces/eth0", `{"iface_id":"eth0","host_dev_name":"averyveryverylongname"}`), put("/network-interfaces/eth0", `{"iface_id":"eth0","host_dev_name":"t1","guest_mac":"zz"}`),
		put("/network-interfaces/eth1", `{"iface_id":"eth0","host_dev_name":"lo"}`), put("/network-interfaces/eth0", `{"iface_id":"eth0","host_dev_name":"lo"}`),
		put("/network-interfaces/eth0", `{"iface_id":"eth0","host_dev_name":"t1","mtu":9}`), put("/network-interfaces/eth0", `{"iface_id":"eth0"}`),
		put("/entropy", `{}`), put("/entropy", `{"rate_limiter":{"ops":{"size":1,"refill_time":2,"x":1}}}`), put("/entropy", `{"x":1}`),
		put("/balloon", `{"amount_mib":1,"deflate_on_oom":true}`), put("/balloon", `{"amount_mib":1}`), get("/balloon"), put("/logger", `{}`), put("/logger", `{"log_path":"/nope/x"}`),
		put("/logger", `{"x":1}`), put("/metrics", `{"metrics_path":"$D/metrics"}`), put("/metrics", `{}`), put("/metrics", `{"metrics_path":"$D/metrics"}`),
		put("/serial", `{"serial_out_path":"$D/serial"}`).from(14), get("/vm/config"),
	}},
	{name: "after the start", steps: after(booting,
		get("/"), put("/actions", start), put("/snapshot/create", `{"snapshot_path":"$D/s","mem_file_path":"$D/m"}`), patch("/vm", resume), patch("/vm", pause), patch("/vm", pause),
		get("/"), put("/snapshot/create", `{"snapshot_path":"$D/s","mem_file_path":"$D/m"}`), put("/snapshot/create", `{"snapshot_path":"$D/s","mem_file_path":"$D/m","snapshot_type":"Diff"}`),
		put("/snapshot/create", `{"snapshot_path":"/nope/s","mem_file_path":"$D/m"}`), put("/snapshot/create", `{"snapshot_path":"$D/s","mem_file_path":"/nope/m","snapshot_type":"Diff"}`),
		put("/snapshot/create", `{"snapshot_path":"$D/s","mem_file_path":"$D/m","snapshot_type":"Other"}`), put("/snapshot/create", `{"snapshot_path":"$D/s"}`),
		patch("/drives/disk", `{"drive_id":"disk","rate_limiter":{"ops":{"size":100,"refill_time":100}}}`), patch("/drives/nope", `{"drive_id":"nope","rate_limiter":{}}`),
		patch("/drives/disk", `{"drive_id":"disk"}`), patch("/drives/disk", `{"drive_id":"disk","path_on_host":"/nope"}`), get("/vm/config"),
		patch("/drives/disk", `{"drive_id":"disk","rate_limiter":{"ops":{"size":0,"refill_time":0},"bandwidth":{"size":0,"refill_time":0}}}`), get("/vm/config"),
		patch("/drives/disk", `{"drive_id":"disk","is_read_only":true}`), patch("/vm", `{"state":"Other"}`), patch("/vm", `{}`), patch("/vm", resume), get("/"),
		put("/vsock", `{"guest_cid":3,"uds_path":"$D/v.sock"}`), put("/drives/new", `{"drive_id":"new","is_root_device":false,"path_on_host":"$D/rootfs"}`),
		put("/network-interfaces/eth0", `{"iface_id":"eth0","host_dev_name":"t1"}`), patch("/network-interfaces/eth0", `{"iface_id":"eth0"}`), put("/entropy", `{}`),
		put("/actions", `{"action_type":"SendCtrlAltDel"}`), put("/actions", `{"action_type":"FlushMetrics"}`), step{method: "DELETE", path: "/drives/disk"}.from(16),
		load(""), get("/mmds"), get("/balloon"), patch("/balloon", `{"amount_mib":1}`), get("/balloon/statistics"), put("/logger", `{}`), put("/metrics", `{"metrics_path":"$D/m2"}`),
		put("/machine-config", `{"vcpu_count":1,"mem_size_mib":64}`), patch("/machine-config", `{"vcpu_count":1}`), put("/boot-source", `{"kernel_image_path":"$D/kernel"}`),
		put("/balloon", `{"amount_mib":1,"deflate_on_oom":true}`), put("/serial", `{}`).from(14), get("/machine-config"), get("/"),
	)},
	{name: "loaded", snapshot: true, steps: []step{load("").with(noSocket), get("/"), get("/vm/config"), get("/machine-config"), put("/actions", start), load(""),
		put("/snapshot/create", `{"snapshot_path":"$D/s","mem_file_path":"$D/m","snapshot_type":"Diff"}`).from(13), patch("/vm", resume), get("/")}},
	{name: "loaded and resumed", snapshot: true, steps: []step{load(`,"resume_vm":true,"enable_diff_snapshots":true`).with(noSocket), get("/"), get("/machine-config")}},
	{name: "loaded by the old way", snapshot: true, steps: []step{put("/snapshot/load", `{"snapshot_path":"$D/state","mem_file_path":"$D/memory"}`).with(noSocket), get("/")}},
	{name: "load refused", steps: []step{
		put("/snapshot/load", `{"snapshot_path":"a"}`), put("/snapshot/load", `{"snapshot_path":"a","mem_file_path":"b","mem_backend":{"backend_type":"File","backend_path":"b"}}`),
		put("/snapshot/load", `{"mem_file_path":"b"}`), put("/snapshot/load", `{"snapshot_path":"a","mem_backend":{"backend_type":"Other","backend_path":"b"}}`),
		put("/snapshot/load", `{"snapshot_path":"a","mem_backend":{"backend_path":"b"}}`), load(`,"other":1`), load(`,"resume_vm":"yes"`),
		load(`,"track_dirty_pages":1`), load(`,"network_overrides":[{"iface_id":"x"}]`), load(`,"network_overrides":{}`), load(`,"vsock_override":{}`), load(`,"clock_realtime":3`), load(`,"huge_pages":"1G"`),
		get("/"),
	}},
	one("load beside a socket", load("").fatal()),
	one("load without state", load("").with(func(t testing.TB, dir string) { must(t, os.Remove(filepath.Join(dir, "state"))) }).fatal()),
	one("load without memory", load("").with(func(t testing.TB, dir string) { noSocket(t, dir); must(t, os.Remove(filepath.Join(dir, "memory"))) }).fatal()),
	one("load short memory", load("").with(func(t testing.TB, dir string) {
		noSocket(t, dir)
		must(t, os.Truncate(filepath.Join(dir, "memory"), 8<<20))
	}).fatal()),
	one("load long memory", load("").with(func(t testing.TB, dir string) {
		noSocket(t, dir)
		must(t, os.Truncate(filepath.Join(dir, "memory"), 32<<20))
	})),
	one("load without drive", load("").with(func(t testing.TB, dir string) { noSocket(t, dir); must(t, os.Remove(filepath.Join(dir, "disk"))) }).fatal()),
	one("load with a smaller drive", load("").with(func(t testing.TB, dir string) {
		noSocket(t, dir)
		must(t, os.Truncate(filepath.Join(dir, "disk"), 1<<20))
	})),
	one("load an unknown network", load(`,"network_overrides":[{"iface_id":"eth0","host_dev_name":"x"}]`).with(noSocket).from(12).fatal()),
	one("load with another socket", load(`,"vsock_override":{"uds_path":"$D/w.sock"}`).from(16)),
	one("load with huge pages", load(`,"huge_pages":"2M"`).with(noSocket).from(17).fatal()),
	one("load without a page server", put("/snapshot/load", `{"snapshot_path":"$D/state","mem_backend":{"backend_type":"Uffd","backend_path":"$D/u.sock"}}`).with(noSocket).fatal()),
	one("load an empty state", load("").with(damage(func([]byte) []byte { return nil })).fatal()),
	one("load five bytes", load("").with(damage(func(b []byte) []byte { return b[:5] })).fatal()),
	one("load half a state", load("").with(damage(func(b []byte) []byte { return b[:len(b)*2/3] })).fatal()),
	one("load all but a byte", load("").with(damage(func(b []byte) []byte { return b[:len(b)-1] })).fatal()),
	one("load a changed sum", load("").with(damage(func(b []byte) []byte { b[len(b)-1] ^= 0x40; return b })).fatal()),
	one("load noise", load("").with(damage(func([]byte) []byte { return []byte(strings.Repeat("\xa5\n", 4000)) })).fatal()),
}
