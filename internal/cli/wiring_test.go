package cli_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/api"
)

func TestPorts(t *testing.T) {
	s := newShell(t)
	s.svc.AddTemplate("web")
	id := strings.TrimSpace(s.want(0, "sandbox", "create", "web", "-q", "-p", "8080:80", "--publish", "0.0.0.0:8443:443", "-p", "5432").out)
	if o := s.want(0, "port", "ls", id, "-q"); o.out != "127.0.0.1:8080\n0.0.0.0:8443\n127.0.0.1:45432\n" {
		t.Errorf("it publishes\n%s", o.out)
	}
	if o := s.want(0, "sandbox", "show", id); !strings.Contains(o.out, "127.0.0.1:8080 -> 80, 0.0.0.0:8443 -> 443") {
		t.Errorf("it is shown as\n%s", o.out)
	}
	s.want(0, "port", "add", id, "[::1]:9000:9000", "0:81")
	if o := s.want(1, "port", "add", id, "8080:81"); !strings.Contains(o.errOut, "ports.hostPort") {
		t.Errorf("a port that is taken: %s", o.errOut)
	}
	if o := s.want(0, "port", "rm", "--dry-run", id, "8080"); !strings.Contains(o.out, "8080") || strings.Contains(o.out, "8443") {
		t.Errorf("would go: %s", o.out)
	}
	s.want(0, "port", "rm", id, "8080", "[::1]:9000")
	s.want(1, "port", "rm", id, "8080")
	var left []api.Port
	if err := json.Unmarshal([]byte(s.want(0, "port", "ls", id, "-o", "json").out), &left); err != nil || len(left) != 3 || left[0].HostPort != 8443 || !left[1].Picked {
		t.Errorf("left are %+v, %v", left, err)
	}
	if o := s.want(0, "__complete", "port", "rm", id, ""); !strings.Contains(o.out, "8443\t0.0.0.0 -> 443") {
		t.Errorf("completes to %s", o.out)
	}
}

func TestWiring(t *testing.T) {
	s := newShell(t)
	sent := map[string]string{}
	s.onBody = func(method, path string, body []byte) { sent[method+" "+path] = string(body) }
	s.want(0, "template", "build", "web", "--image", "web:1", "--network", "user", "--default-internet", "off", "--default-allow-domain", "example.com",
		"--default-cpus", "0.5", "--default-publish", "80", "--cpus", "2")
	var build api.BuildRequest
	if err := json.Unmarshal([]byte(sent["POST /v1/templates"]), &build); err != nil {
		t.Fatal(err)
	}
	off := false
	if diff := cmp.Diff(&api.Network{Mode: spore.NetworkUser, Egress: &api.Egress{Internet: &off, AllowDomains: []string{"example.com"}}}, build.Network); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(api.CreateDefaults{Ports: api.Ports{{GuestPort: 80}}, Limits: api.Limits{CPUs: 0.5}}, build.Defaults); diff != "" || build.VCPUs != 2 {
		t.Error(build.VCPUs, diff)
	}
	if o := s.want(0, "template", "info", "web"); !strings.Contains(o.out, "network device") {
		t.Errorf("it is shown as\n%s", o.out)
	}
	s.want(0, "template", "redo", "web", "--network")
	if body := sent["POST /v1/templates/web/redo"]; !strings.Contains(body, `"addNetwork":true`) {
		t.Errorf("sent %s", body)
	}

	id := strings.TrimSpace(s.want(0, "sandbox", "create", "web", "-q", "--network", "user", "--allow-cidr", "10.1.0.0/16", "--deny-cidr", "203.0.113.7",
		"--egress-proxy", "http://10.1.2.3:3128", "--disk-mbps", "10", "--disk-iops", "20", "--net-in-mbps", "30", "--net-out-mbps", "40").out)
	show := s.want(0, "sandbox", "show", id).out
	for _, want := range []string{
		"user, internet on, allowed 10.1.0.0/16, denied 203.0.113.7, proxy http://10.1.2.3:3128", "10 MB/s of disk, 20 IOPS, 30 Mbit/s in, 40 Mbit/s out",
	} {
		if !strings.Contains(show, want) {
			t.Errorf("%q is not in\n%s", want, show)
		}
	}
	s.want(0, "sandbox", "set", id, "--internet", "off", "--allow-domain", "*.example.com", "--allow-cidr", "none", "--egress-proxy", "none", "--disk-iops", "0", "--cpus", "1.5", "--label", "a=b")
	show = s.want(0, "sandbox", "show", id).out
	for _, want := range []string{"user, internet off, allowed *.example.com, denied 203.0.113.7\n", "1.5 processors, 10 MB/s of disk, 30 Mbit/s in, 40 Mbit/s out", "a=b"} {
		if !strings.Contains(show, want) {
			t.Errorf("%q is not in\n%s", want, show)
		}
	}
	if o := s.want(0, "sandbox", "ls", "-o", "wide"); !strings.Contains(o.out, "1.5 processors") {
		t.Errorf("listed as\n%s", o.out)
	}
	for _, args := range [][]string{
		{"sandbox", "set", id}, {"sandbox", "create", "web", "--network", "vpn"}, {"sandbox", "create", "web", "-p", "x"}, {"sandbox", "create", "web", "-p", "1:2:3"},
		{"sandbox", "create", "web", "--internet", "maybe"}, {"sandbox", "create", "web", "--disk", "here.img"}, {"port", "add", id, "70000:80"}, {"port", "add", id, "80:0"},
		{"port", "rm", id, "0"}, {"port", "add", id}, {"sandbox", "set", id, "--label", "a=1", "--unlabel", "a"},
	} {
		s.want(2, args...)
	}
}

func TestHeldSnapshot(t *testing.T) {
	s := newShell(t)
	s.svc.AddTemplate("web")
	id := strings.TrimSpace(s.want(0, "sandbox", "create", "web", "-q").out)
	o := s.want(0, "snapshot", "create", id, "--name", "held", "-q", "--while-paused", "echo of $SPORE_SANDBOX_ID, $SPORE_SNAPSHOT_ID")
	snap := strings.TrimSpace(o.out)
	if o.errOut != "of "+id+", "+snap+"\n" {
		t.Errorf("the command said %q", o.errOut)
	}
	if o := s.want(1, "snapshot", "create", id, "--name", "broken", "--while-paused", "exit 3"); !strings.Contains(o.errOut, "exit status 3") {
		t.Errorf("a command that fails: %s", o.errOut)
	}
	if o := s.want(0, "snapshot", "ls", "-q"); o.out != snap+"\n" {
		t.Errorf("there are\n%s", o.out)
	}
	s.want(2, "snapshot", "create", id, "--while-paused", "true", "--pause-limit", "1h")
}
