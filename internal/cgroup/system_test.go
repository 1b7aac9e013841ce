package cgroup

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	spore "github.com/sporevm/spore"
)

// tree is a version 2 hierarchy as far as files go: what is written stays in them as it was written.
type tree struct {
	t   *testing.T
	top string
}

func newTree(t *testing.T) tree {
	tr := tree{t, t.TempDir()}
	tr.fill("", "cpu memory")
	must(t, os.Remove(filepath.Join(tr.top, "cgroup.events"))) // the root has none
	return tr
}

// fill gives a directory what the kernel gives a new group.
func (tr tree) fill(dir, controllers string) {
	for name, text := range map[string]string{
		"cgroup.controllers": controllers, "cgroup.subtree_control": "", "cgroup.procs": "", "cgroup.events": "populated 0\n",
		"cpu.max": "max 100000\n", "cpu.stat": "usage_usec 5\nnr_periods 3\nnr_throttled 2\nthrottled_usec 7\n",
	} {
		must(tr.t, os.WriteFile(filepath.Join(tr.top, dir, name), []byte(text), 0o600))
	}
}

func (tr tree) system(uid int, own string) system {
	return system{
		mounts: []mount{{root: "/", point: tr.top, v2: true}}, own: map[string]string{"": own}, uid: uid,
		mkdir: func(path string) error {
			if err := os.Mkdir(path, 0o700); err != nil {
				return err
			}
			dir, err := filepath.Rel(tr.top, path)
			must(tr.t, err)
			tr.fill(dir, "cpu memory")
			return nil
		},
		rmdir: os.RemoveAll,
	}
}

func (tr tree) read(path string) string {
	text, err := os.ReadFile(filepath.Join(tr.top, path))
	must(tr.t, err)
	return string(text)
}

const owner = "0123456789abcdef"

func TestVersion2(t *testing.T) {
	tr := newTree(t)
	c, err := open(t.Context(), Options{Owner: owner}, tr.system(0, "/system.slice/spore.service"))
	must(t, err)
	if info := c.Info(); info.Version != V2 || info.Path != filepath.Join(tr.top, "spore") {
		t.Errorf("%+v", info)
	}
	if tr.read("cgroup.subtree_control") != "+cpu" || tr.read("spore/cgroup.subtree_control") != "+cpu" {
		t.Error("the controllers are not handed down")
	}
	g, err := c.Create(t.Context(), "vm")
	must(t, err)
	must(t, g.Add(77))
	must(t, g.SetCPUs(1.5))
	group := "spore/" + owner + ".vm/"
	if got := tr.read(group + "cpu.max"); got != "150000 100000" {
		t.Error(got)
	}
	if got := tr.read(group + "cgroup.procs"); got != "77" {
		t.Error(got)
	}
	must(t, g.SetCPUs(0.001))
	if got := tr.read(group + "cpu.max"); got != "1000 100000" {
		t.Error(got)
	}
	must(t, g.SetCPUs(0))
	if got := tr.read(group + "cpu.max"); got != "max 100000" {
		t.Error(got)
	}
	if u, err := g.Usage(); err != nil || u.CPU != 5000 || u.Periods != 3 || u.Throttled != 2 || u.ThrottledFor != 7000 {
		t.Errorf("%+v, %v", u, err)
	}
	must(t, g.Remove(t.Context()))
}

// What the engine has put into a group of version 2 is bounded in it, and left there.
func TestVersion2Given(t *testing.T) {
	tr := newTree(t)
	c, err := open(t.Context(), Options{Owner: owner}, tr.system(0, "/"))
	must(t, err)
	must(t, os.MkdirAll(filepath.Join(tr.top, "jails/one"), 0o700))
	tr.fill("jails", "cpu pids")
	tr.fill("jails/one", "pids") // the jailer hands down no more than it needs
	must(t, os.Remove(filepath.Join(tr.top, "jails/one/cpu.max")))
	own := []string{filepath.Join(tr.top, "jails/one")}
	must(t, c.Govern(t.Context(), "vm", 77, own, 0))
	if got := tr.read("jails/cgroup.subtree_control"); got != "" {
		t.Errorf("without a bound %q is handed down", got)
	}
	if err := c.Govern(t.Context(), "vm", 77, own, 1.5); err == nil || tr.read("jails/cgroup.subtree_control") != "+cpu" {
		t.Errorf("it is bounded without the controller (%v), or that is not handed down", err)
	}
	must(t, os.WriteFile(filepath.Join(own[0], "cpu.max"), nil, 0o600)) // which the kernel makes now
	must(t, c.Govern(t.Context(), "vm", 77, own, 1.5))
	if max, procs := tr.read("jails/one/cpu.max"), tr.read("jails/one/cgroup.procs"); max != "150000 100000" || procs != "77" {
		t.Errorf("its bound is %q, in it is %q", max, procs)
	}
	must(t, c.Govern(t.Context(), "vm", 77, own, 0))
	if got := tr.read("jails/one/cpu.max"); got != "max 100000" {
		t.Error(got)
	}
	if ids, err := c.List(); err != nil || len(ids) > 0 {
		t.Errorf("it has another group: %v, %v", ids, err)
	}
	must(t, c.Govern(t.Context(), "vm", 77, []string{"/sys/fs/cgroup/pids/jails/one"}, 1)) // of another hierarchy
	if got := tr.read("spore/" + owner + ".vm/cgroup.procs"); got != "77" {
		t.Error(got)
	}
}

// A server in a container sees its own group as the root, and one with a user of its own may only use what it was given.
func TestVersion2Delegated(t *testing.T) {
	tr := newTree(t)
	must(t, os.MkdirAll(filepath.Join(tr.top, "user/spore"), 0o700))
	tr.fill("user", "cpu")
	tr.fill("user/spore", "cpu")
	must(t, os.WriteFile(filepath.Join(tr.top, "user/spore/cgroup.procs"), []byte("0\n41\n"), 0o600))
	c, err := open(t.Context(), Options{Owner: owner}, tr.system(1000, "/user/spore"))
	must(t, err)
	if info := c.Info(); info.Path != filepath.Join(tr.top, "user/spore/spore") {
		t.Errorf("%+v", info)
	}
	if got := tr.read("user/spore/server/cgroup.procs"); got != "41" {
		t.Errorf("the server did not make way: %q", got)
	}
	if tr.read("cgroup.subtree_control") != "" || tr.read("user/cgroup.subtree_control") != "" {
		t.Error("what was not delegated was changed")
	}
}

func TestNotToBeHad(t *testing.T) {
	v1 := t.TempDir()
	for name, tc := range map[string]struct {
		sys  func() system
		want []string
	}{
		"nothing mounted": {func() system { return system{uid: 0} }, []string{"version 2: is not mounted", "controller cpu is not mounted"}},
		"cpu is with version 1, without quotas": {func() system {
			tr := newTree(t)
			must(t, os.WriteFile(filepath.Join(tr.top, "cgroup.controllers"), nil, 0o600))
			sys := tr.system(0, "/")
			sys.mounts = append(sys.mounts, mount{root: "/", point: v1, options: []string{"rw", "cpu"}})
			return sys
		}, []string{"offers no cpu controller", "no quotas"}},
		"elsewhere": {func() system {
			sys := newTree(t).system(1000, "/a")
			sys.mounts[0].root = "/b"
			return sys
		}, []string{"is not under"}},
	} {
		_, err := open(t.Context(), Options{Owner: owner}, tc.sys())
		wantCode(t, name, err, spore.CodeUnsupported)
		for _, want := range tc.want {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%s: no %q in %v", name, want, err)
			}
		}
		var e *spore.Error
		if !errors.As(err, &e) || e.Hint == "" {
			t.Errorf("%s: no hint", name)
		}
	}
}

func TestParseMounts(t *testing.T) {
	got, err := parseMounts(`25 30 0:22 / /sys/fs/cgroup ro,nosuid shared:9 - tmpfs tmpfs ro,mode=755
26 25 0:23 / /sys/fs/cgroup/unified rw shared:10 - cgroup2 cgroup2 rw,nsdelegate
27 25 0:24 /docker/ab\040c /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
28 25 0:25 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids
29 25 0:26 / /sys/fs/cgroup/pids rw - tmpfs tmpfs rw
`)
	must(t, err)
	if len(got) != 2 || !got[0].v2 || got[1].root != "/docker/ab c" || !got[1].has("cpuacct") || got[1].has("pids") {
		t.Errorf("%+v", got)
	}
	for group, want := range map[string]string{
		"/docker/ab c": "/sys/fs/cgroup/cpu,cpuacct", "/docker/ab c/x": "/sys/fs/cgroup/cpu,cpuacct/x", "/docker/ab cd": "", "/": "",
	} {
		if dir, ok := got[1].dir(group); dir != want || ok != (want != "") {
			t.Errorf("%s: %q, %v", group, dir, ok)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("26 25 0:23 / /sys/fs/cgroup/unified rw shared:10 - cgroup2 cgroup2 rw\n")
	f.Add("27 25 0:24 /a\\040b /c rw - cgroup cgroup rw,cpu\n")
	f.Add("0::/user.slice\n4:cpu,cpuacct:/\n")
	f.Add("usage_usec 5\nnr_periods 3\n")
	f.Fuzz(func(t *testing.T, text string) {
		if all, err := parseMounts(text); err == nil {
			for _, m := range all {
				m.dir("/a/b")
			}
		}
		if own, err := parseOwn(text); err == nil {
			for _, path := range own {
				if !filepath.IsAbs(path) {
					t.Fatalf("%q", path)
				}
			}
		}
		parseStat([]byte(text))
	})
}
