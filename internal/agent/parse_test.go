package agent

import (
	"net"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

const (
	testPasswd = "root:x:0:0:root:/root:/bin/sh\n# comment\nbroken line\nbad:x:none:1::/:\nworker:x:1000:1001::/home/worker\nnohome:x:7:7:::\n"
	testGroup  = "root:x:0:\nstaff:x:50:worker, root\nextra:x:51:worker\nworker:x:1001:worker\n"
)

func TestResolveUser(t *testing.T) {
	a := accounts{parsePasswd([]byte(testPasswd)), parseGroup([]byte(testGroup))}
	for spec, want := range map[string]User{
		"":             {Name: "root", Home: "/root", Shell: "/bin/sh", Groups: []uint32{50}},
		"worker":       {Name: "worker", UID: 1000, GID: 1001, Groups: []uint32{50, 51}, Home: "/home/worker"},
		"1000":         {Name: "worker", UID: 1000, GID: 1001, Groups: []uint32{50, 51}, Home: "/home/worker"},
		"worker:staff": {Name: "worker", UID: 1000, GID: 50, Home: "/home/worker"},
		"4711:4712":    {UID: 4711, GID: 4712, Home: "/"},
		"nohome":       {Name: "nohome", UID: 7, GID: 7, Home: "/"},
		":50":          {Name: "root", GID: 50, Home: "/root", Shell: "/bin/sh"},
	} {
		got, err := a.resolve(spec)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%q: %+v, %v; want %+v", spec, got, err, want)
		}
	}
	for _, spec := range []string{"nobody-here", "worker:nogroup", "-1", "4294967295", "99999999999", "bad"} {
		if u, err := a.resolve(spec); err == nil {
			t.Errorf("%q resolves to %+v", spec, u)
		}
	}
	if u, err := (accounts{}).resolve(""); err != nil || u.UID != 0 || u.Home != "/root" || u.Name != "root" {
		t.Errorf("without /etc/passwd: %+v, %v", u, err)
	}
}

func FuzzAccounts(f *testing.F) {
	f.Add(testPasswd, testGroup, "worker:staff")
	f.Add(":::::::\n", "x:x:4294967295:a,,b", ":")
	f.Fuzz(func(t *testing.T, passwd, group, spec string) {
		a := accounts{parsePasswd([]byte(passwd)), parseGroup([]byte(group))}
		u, err := a.resolve(spec)
		if err == nil && (u.UID == 1<<32-1 || u.GID == 1<<32-1 || u.Home == "") {
			t.Fatalf("%q: %+v", spec, u)
		}
		for _, e := range a.passwd {
			if e.name == "" || strings.ContainsAny(e.name, ":\n") {
				t.Fatalf("name %q", e.name)
			}
		}
	})
}

func FuzzResolvePath(f *testing.F) {
	for _, s := range []string{"a", "/a/../..", "~", "~/x", "~root/y", "~nouser", "", "a\x00b", "../../.."} {
		f.Add(s, "/work")
	}
	f.Fuzz(func(t *testing.T, path, workDir string) {
		a := &Agent{}
		a.settings.workDir = workDir
		got, err := a.resolvePath(path, User{Home: "/home/u"})
		if err == nil && (!filepath.IsAbs(got) || got != filepath.Clean(got)) {
			t.Fatalf("%q becomes %q", path, got)
		}
		if (err != nil) != strings.Contains(path, "\x00") {
			t.Fatalf("%q: %v", path, err)
		}
	})
}

func TestParseSignal(t *testing.T) {
	for s, want := range map[string]int{"": 15, "SIGQUIT": 3, "quit": 3, "9": 9, "SIGRTMIN+3": 37} {
		if got, err := parseSignal(s); err != nil || int(got) != want {
			t.Errorf("%q: %d, %v", s, got, err)
		}
	}
	for _, s := range []string{"0", "65", "-1", "NOPE", "SIGRTMIN+99", "SIGRTMIN+"} {
		if got, err := parseSignal(s); err == nil {
			t.Errorf("%q: %d", s, got)
		}
	}
}

func FuzzParseSignal(f *testing.F) {
	f.Add("SIGTERM")
	f.Add("SIGRTMIN+1x")
	f.Fuzz(func(t *testing.T, s string) {
		if sig, err := parseSignal(s); err == nil && (sig < 1 || sig > 64) {
			t.Fatalf("%q: %d", s, sig)
		}
	})
}

func FuzzParseDiag(f *testing.F) {
	f.Add(make([]byte, 16))
	f.Add(append([]byte{88, 0, 0, 0, 20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2}, make([]byte, 71)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		conns, _, _ := parseDiag(b)
		if len(conns)*diagMsgSize > len(b) {
			t.Fatal("more connections than bytes")
		}
	})
}

func FuzzParseStat(f *testing.F) {
	f.Add([]byte("cpu  1 2 3 4 5 6 7 8 9 10\ncpu0"), []byte("MemTotal: 12 kB\n"))
	f.Fuzz(func(t *testing.T, stat, mem []byte) {
		parseCPU(stat)
		parseMeminfo(mem)
	})
}

func TestParseCPU(t *testing.T) {
	if got := parseCPU([]byte("cpu  1 2 3 4 5 6 7 8 9 10\n")); got != (cpuTimes{busy: 27, total: 36}) {
		t.Fatal(got)
	}
}

func TestSetHost(t *testing.T) {
	hosts := setHost("127.0.0.1 localhost", "one")
	hosts = setHost(hosts, "two")
	if hosts != "127.0.0.1 localhost\n127.0.1.1 two"+hostMark+"\n" {
		t.Fatalf("%q", hosts)
	}
}

func FuzzSetHost(f *testing.F) {
	f.Add("127.0.0.1 localhost\n", "name")
	f.Fuzz(func(t *testing.T, hosts, name string) {
		if !hostnameForm.MatchString(name) {
			t.Skip()
		}
		once := setHost(hosts, name)
		if setHost(once, name) != once {
			t.Fatalf("%q", once)
		}
	})
}

func TestAddress(t *testing.T) {
	if _, _, _, err := (Address{CIDR: "10.0.0.2/24", Gateway: "10.0.0.1", MAC: "02:00:00:00:00:01"}).parse(); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []Address{{}, {CIDR: "10.0.0.2"}, {CIDR: "::1/64"}, {CIDR: "10.0.0.2/24", Gateway: "x"}, {CIDR: "10.0.0.2/24", MAC: "1"}, {CIDR: "10.0.0.2/24", MTU: -1}} {
		if _, _, _, err := bad.parse(); err == nil {
			t.Errorf("%+v", bad)
		}
	}
}

func TestHasNIC(t *testing.T) {
	interfaces, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	want := false
	for _, i := range interfaces {
		want = want || i.Index > 1 && i.Index < 16
	}
	if hasNIC() != want {
		t.Fatalf("%v: %v", interfaces, !want)
	}
}
