package daemon_test

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/nftables"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/api"
)

// comeAndGo makes and removes sandboxes on isolated networks, fifty of them, and looks for what is left of them on the host.
func comeAndGo(t *testing.T, srv *server) {
	t.Helper()
	limits := api.Limits{CPUs: 0.9}
	var names sync.Map // of networks that were there
	var round atomic.Int64
	var all sync.WaitGroup
	for range 2 {
		all.Go(func() {
			for round.Add(1) <= 50 {
				sb, err := srv.CreateSandbox(t.Context(), api.CreateRequest{
					Template: "net", Network: api.Network{Mode: spore.NetworkIsolated}, Ports: api.Ports{{GuestPort: 80}}, Limits: limits,
				})
				if err != nil {
					t.Error(err)
					return
				}
				for _, record := range links(t, srv.dir) {
					names.Store(filepath.Base(record), nil)
				}
				if err := srv.DeleteSandbox(t.Context(), sb.ID); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	all.Wait()
	count := 0
	for name := range names.Range {
		count++
		for _, path := range []string{"/run/netns", "/sys/class/net"} {
			if _, err := os.Lstat(filepath.Join(path, name.(string))); !os.IsNotExist(err) {
				t.Errorf("%s/%s was left: %v", path, name, err)
			}
		}
	}
	if count == 0 {
		t.Error("no network was seen")
	}
	if left := links(t, srv.dir); len(left) > 0 {
		t.Errorf("%v were left", left)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for name := range names.Range {
		if strings.Contains(string(mounts), name.(string)) {
			t.Errorf("a mount of %s was left", name)
		}
	}
	if strings.Contains(string(mounts), srv.dir+"/vms/") {
		t.Errorf("mounts of VMs were left:\n%s", mounts)
	}
	conn, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	tables, err := conn.ListTables()
	if err != nil {
		t.Fatal(err)
	}
	for _, table := range tables {
		for name := range names.Range {
			if table.Name != "spore_guard" && strings.HasPrefix(name.(string), table.Name) {
				t.Errorf("the table %s was left", table.Name)
			}
		}
	}
	vms, err := os.ReadDir(filepath.Join(srv.dir, "vms"))
	if err != nil {
		t.Fatal(err)
	}
	for _, vm := range vms {
		if pids := processesIn(t, filepath.Join(srv.dir, "vms", vm.Name())); len(pids) > 0 {
			continue // of the sandbox without a cable, which is still there
		}
		t.Errorf("the directory of VM %s was left", vm.Name())
	}
}
