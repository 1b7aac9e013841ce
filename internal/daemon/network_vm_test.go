package daemon_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/api"
	"github.com/sporevm/spore/internal/testbed"
)

// TestNetworks has real guests reach what they may, in each way that they can be connected, and be reached through published
// ports, while the server is killed and sandboxes go back in time.
func TestNetworks(t *testing.T) {
	t.Parallel()
	cfg := serving{Config: daemonConfig(t)}
	srv := start(t, cfg)
	srv.installKernel(t)
	tj, err := srv.BuildTemplate(t.Context(), api.BuildRequest{
		Name: "net", Image: testbed.Ref(testbed.Image(t, "busybox")), MemoryMiB: 256, DiskMiB: 512, Network: &api.Network{Mode: spore.NetworkUser},
	})
	if err != nil {
		t.Fatal(err)
	}
	if tpl := srv.await(t, tj); !tpl.NIC {
		t.Fatal("the template has no network device")
	}
	outside := hostServer(t)
	modes := []spore.NetworkMode{spore.NetworkUser}
	if os.Geteuid() == 0 {
		modes = append(modes, spore.NetworkIsolated)
	}
	boxes := map[spore.NetworkMode]*netBox{}
	for _, mode := range modes {
		boxes[mode] = newNetBox(t, srv, mode, outside)
	}
	for _, mode := range modes {
		t.Run(string(mode), func(t *testing.T) { boxes[mode].lives(t, srv) })
	}
	none, err := srv.CreateSandbox(t.Context(), api.CreateRequest{Template: "net", Network: api.Network{Mode: spore.NetworkNone}})
	if err != nil {
		t.Fatal(err)
	}
	if got := srv.sh(t, none.ID, reach(outside)); got != "no" {
		t.Errorf("without a cable the guest hears %q", got)
	}

	srv.crash()
	srv = start(t, cfg)
	for _, mode := range modes {
		t.Run(string(mode)+" after a crash", func(t *testing.T) { boxes[mode].goesOn(t, srv) })
	}
	user := boxes[spore.NetworkUser]
	user.losesNetwork(t, srv)
	user.goesOn(t, srv)
	srv.crash()
	killNetworks(t, srv.dir)
	srv = start(t, cfg)
	user.goesOn(t, srv)
	before := links(t, srv.dir)
	if len(before) != len(modes) {
		t.Errorf("there are %v", before)
	}
	for _, mode := range modes {
		if err := srv.DeleteSandbox(t.Context(), boxes[mode].id); err != nil {
			t.Error(err)
		}
	}
	if left := links(t, srv.dir); len(left) > 0 {
		t.Errorf("of sandboxes that are gone there are %v", left)
	}
	if os.Geteuid() == 0 {
		comeAndGo(t, srv)
	}
	srv.clean(t)
}

// hostServer listens on an address of this machine that guests may not reach unless they are allowed to. What connects is greeted.
func hostServer(t *testing.T) net.Addr {
	t.Helper()
	probe, err := net.Dial("udp4", "192.0.2.1:9") // nothing is sent
	if err != nil {
		t.Skipf("this machine has no address but the loopback's: %v", err)
	}
	defer probe.Close()
	l, err := net.Listen("tcp4", net.JoinHostPort(probe.LocalAddr().(*net.UDPAddr).IP.String(), "0"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				io.WriteString(c, "welcome\n")
				io.Copy(io.Discard, c) // the connection stays as long as the guest likes
			}()
		}
	}()
	return l.Addr()
}

// reach is a command that says what a server greets with, "no" when it is not reached.
func reach(to net.Addr) string {
	host, port, _ := net.SplitHostPort(to.String())
	return fmt.Sprintf("(sleep 1 | nc -w 30 %s %s | head -1 | grep . ) 2>/dev/null || echo no", host, port)
}

// netBox is a sandbox with a network and a published port.
type netBox struct {
	id      string
	mode    spore.NetworkMode
	outside net.Addr
	web     string // URL of its web server
}

func newNetBox(t *testing.T, srv *server, mode spore.NetworkMode, outside net.Addr) *netBox {
	t.Helper()
	sb, err := srv.CreateSandbox(t.Context(), api.CreateRequest{Template: "net", Network: api.Network{Mode: mode}, Ports: api.Ports{{GuestPort: 80}}})
	if err != nil {
		t.Fatal(err)
	}
	if len(sb.Ports) != 1 || sb.Ports[0].HostPort == 0 || sb.Network.Mode != mode {
		t.Fatalf("it is %+v, %+v", sb.Network, sb.Ports)
	}
	srv.sh(t, sb.ID, "mkdir -p /w && echo "+sb.ID+" > /w/index.html && httpd -p 127.0.0.1:80 -h /w")
	return &netBox{id: sb.ID, mode: mode, outside: outside, web: fmt.Sprintf("http://127.0.0.1:%d/", sb.Ports[0].HostPort)}
}

func (b *netBox) serves(t *testing.T) {
	t.Helper()
	c := &http.Client{Timeout: 2 * time.Minute, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := c.Get(b.web)
	if err != nil {
		t.Error(err)
		return
	}
	defer resp.Body.Close()
	if body, err := io.ReadAll(resp.Body); err != nil || strings.TrimSpace(string(body)) != b.id {
		t.Errorf("its port serves %q, %v", body, err)
	}
}

// servesMany asks its web server many times at once.
func (b *netBox) servesMany(t *testing.T) {
	t.Helper()
	var all sync.WaitGroup
	for range 200 {
		all.Go(func() { b.serves(t) })
	}
	all.Wait()
}

func (b *netBox) lives(t *testing.T, srv *server) {
	ctx := t.Context()
	b.servesMany(t)
	if got := srv.sh(t, b.id, "ip -4 -o addr show eth0 | grep -c 10.254.254.2/30; grep -c 10.254.254.1 /etc/resolv.conf; nc -w 5 10.254.254.1 53 < /dev/null && echo named"); got != "1\n1\nnamed" {
		t.Errorf("its side of the cable: %q", got)
	}
	if got := srv.sh(t, b.id, reach(b.outside)); got != "no" {
		t.Errorf("an address of the host answers %q", got)
	}
	host, _, _ := net.SplitHostPort(b.outside.String())
	allow := []string{host}
	if _, err := srv.UpdateSandbox(ctx, b.id, api.SandboxUpdate{Egress: api.EgressUpdate{AllowCIDRs: &allow}}); err != nil {
		t.Fatal(err)
	}
	if got := srv.sh(t, b.id, reach(b.outside)); got != "welcome" {
		t.Errorf("an address that is allowed answers %q", got)
	}

	// A connection that was open is over at once when the sandbox has gone back in time.
	hostAddr, port, _ := net.SplitHostPort(b.outside.String())
	srv.sh(t, b.id, fmt.Sprintf("(sleep 1000 | nc %s %s > /root/out) > /dev/null 2>&1 & for i in $(seq 100); do grep -q welcome /root/out && break; sleep 0.1; done", hostAddr, port))
	snap, err := srv.CreateSnapshot(ctx, b.id, api.SnapshotRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := srv.Rollback(ctx, b.id, snap.ID); err != nil {
		t.Fatal(err)
	}
	if got := srv.sh(t, b.id, "for i in $(seq 20); do pidof nc > /dev/null || break; sleep 0.1; done; pidof nc || true"); got != "" {
		t.Error("a connection from before a rollback goes on")
	}
	b.serves(t)
	if got := srv.sh(t, b.id, reach(b.outside)); got != "welcome" {
		t.Errorf("after a rollback it hears %q", got)
	}

	// Forks have a cable and a port each, and the same inner address.
	forks, err := srv.Fork(ctx, api.ForkRequest{Source: b.id, Count: 2})
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range forks {
		if f.Error != nil {
			t.Fatal(f.Error.Message)
		}
		own := *b
		own.web = fmt.Sprintf("http://127.0.0.1:%d/", f.Sandbox.Ports[0].HostPort)
		own.serves(t) // what the original wrote
		if got := srv.sh(t, f.Sandbox.ID, reach(b.outside)); got != "welcome" || f.Sandbox.Network.Mode != b.mode {
			t.Errorf("a fork, connected as %s, hears %q", f.Sandbox.Network.Mode, got)
		}
		if err := srv.DeleteSandbox(ctx, f.Sandbox.ID); err != nil {
			t.Error(err)
		}
	}
	paused, err := srv.PauseSandbox(ctx, b.id)
	if err != nil {
		t.Fatal(err)
	}
	if c, err := net.Dial("tcp", strings.TrimSuffix(strings.TrimPrefix(b.web, "http://"), "/")); err == nil {
		c.Close()
		t.Errorf("a port of a sandbox that is %s takes connections", paused.State)
	}
	back, err := srv.ResumeSandbox(ctx, b.id, nil)
	if err != nil {
		t.Fatal(err)
	}
	b.web = fmt.Sprintf("http://127.0.0.1:%d/", back.Ports[0].HostPort)
	b.goesOn(t, srv)
}

// goesOn wants its network to work as it was left.
func (b *netBox) goesOn(t *testing.T, srv *server) {
	b.serves(t)
	if got := srv.sh(t, b.id, reach(b.outside)); got != "welcome" {
		t.Errorf("it hears %q", got)
	}
	sb, err := srv.GetSandbox(t.Context(), b.id)
	if err != nil {
		t.Fatal(err)
	}
	off := false
	if _, err := srv.UpdateSandbox(t.Context(), b.id, api.SandboxUpdate{Egress: api.EgressUpdate{AllowCIDRs: &[]string{}, Internet: &off}}); err != nil {
		t.Fatal(err)
	}
	if got := srv.sh(t, b.id, reach(b.outside)); got != "no" {
		t.Errorf("an address that is not allowed any more answers %q", got)
	}
	on := true
	allow := sb.Network.Egress.AllowCIDRs
	if _, err := srv.UpdateSandbox(t.Context(), b.id, api.SandboxUpdate{Egress: api.EgressUpdate{AllowCIDRs: &allow, Internet: &on}}); err != nil {
		t.Fatal(err)
	}
}

// losesNetwork kills the network process of a sandbox. Another takes its place, and an open connection is over.
func (b *netBox) losesNetwork(t *testing.T, srv *server) {
	host, port, _ := net.SplitHostPort(b.outside.String())
	talk := "(yes | nc %s %s > /root/in; touch /root/over) > /dev/null 2>&1 & for i in $(seq 300); do grep -q welcome /root/in && break; sleep 0.1; done"
	srv.sh(t, b.id, fmt.Sprintf(talk, host, port))
	wantReplaced(t, srv.dir, killNetworks(t, srv.dir))
	if got := srv.sh(t, b.id, "for i in $(seq 300); do [ -e /root/over ] && break; sleep 0.1; done; ls /root/over"); got != "/root/over" {
		t.Errorf("a connection of the network process before goes on (%q)", got)
	}
}

// networkProcesses are the network processes that a server has on record.
func networkProcesses(t *testing.T, dir string) (pids []int) {
	t.Helper()
	records, err := filepath.Glob(filepath.Join(dir, "vms", "*", "net.json"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range records {
		var record struct{ PID int }
		text, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil {
			err = json.Unmarshal(text, &record)
		}
		if err != nil {
			t.Fatal(err)
		}
		pids = append(pids, record.PID)
	}
	return pids
}

// killNetworks kills all network processes of a server, and says which.
func killNetworks(t *testing.T, dir string) []int {
	t.Helper()
	pids := networkProcesses(t, dir)
	if len(pids) == 0 {
		t.Fatal("there is no network process")
	}
	for _, pid := range pids {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	return pids
}

// wantReplaced waits until there are others in the places of network processes that were killed.
func wantReplaced(t *testing.T, dir string, old []int) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		now := networkProcesses(t, dir)
		if len(now) == len(old) && !slices.ContainsFunc(now, func(pid int) bool { return slices.Contains(old, pid) }) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the network processes %v were killed, and there are %v", old, now)
		}
	}
}

// links lists what connects the sandboxes of a server: network stacks and namespaces.
func links(t *testing.T, dir string) (all []string) {
	t.Helper()
	for _, pattern := range []string{"vms/*/net.json", "networks/spore-*"} {
		found, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, found...)
	}
	return all
}
