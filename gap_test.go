package spore_test

import (
	"strings"
	"testing"

	"github.com/sporevm/spore"
)

// TestGap asks what a machine lacks of what is frozen: whatever Serves finds STALE there has a reason, and nothing else has.
func TestGap(t *testing.T) {
	own := spore.Components{
		GuestImage: "krn-2", Agent: "a2", Kernel: "6.2", Engine: "firecracker", EngineVersion: "1.10.1", StateFormat: "firecracker-4.0.0/x", CPU: "intel",
	}
	beside := []spore.Components{
		{GuestImage: "krn-1", Agent: "a1", Kernel: "6.1"},
		{Engine: "firecracker", EngineVersion: "1.15.1", StateFormat: "firecracker-9.0.0/x"},
	}
	qemu := spore.Components{GuestImage: "krn-2", Agent: "a2", Kernel: "6.2", Engine: "qemu", EngineVersion: "7.2.22", StateFormat: "qemu-7.2/q35/tcg/0"}
	with := func(c spore.Components, edit func(*spore.Components)) spore.Components {
		edit(&c)
		return c
	}
	format := func(version, format string) func(*spore.Components) {
		return func(c *spore.Components) { c.EngineVersion, c.StateFormat = version, format }
	}
	const installed = "; installed: 1.10.1 (format 4.0.0), 1.15.1 (format 9.0.0)"
	for name, c := range map[string]struct {
		bound, now spore.Components
		want       spore.Gap
	}{
		"nothing":             {own, own, spore.Gap{}},
		"nothing, by another": {with(own, format("1.15.0", "firecracker-9.0.0/x")), own, spore.Gap{}},
		"nothing that is known": {
			with(own, func(c *spore.Components) { c.StateFormat = "" }), own, spore.Gap{},
		},
		"a version": {
			with(own, format("1.13.1", "firecracker-8.0.0/x")), own,
			spore.Gap{Why: "it was frozen by Firecracker 1.13.1, format 8.0.0" + installed, Cure: "Firecracker 1.13 or 1.14"},
		},
		"a version that was not written down": {
			with(own, format("", "firecracker-12.0.0/x")), own,
			spore.Gap{Why: "it was frozen by Firecracker, format 12.0.0" + installed, Cure: "Firecracker 1.17"},
		},
		"a version to come": {
			with(own, format("2.1.0", "firecracker-20.0.0/x")), own,
			spore.Gap{Why: "it was frozen by Firecracker 2.1.0, format 20.0.0" + installed, Cure: "Firecracker 2.1.0"},
		},
		"a version and a processor": {
			with(own, func(c *spore.Components) {
				c.CPU, c.StateFormat, c.EngineVersion = "amd", "firecracker-8.0.0/y", "1.14.0"
			}), own,
			spore.Gap{Why: "it was frozen by Firecracker 1.14.0, format 8.0.0" + installed + "; and it uses features of the processor amd, and that of the machine is intel"},
		},
		"a processor": {
			with(own, func(c *spore.Components) { c.CPU, c.StateFormat = "amd", "firecracker-4.0.0/y" }), own,
			spore.Gap{Why: "it uses features of the processor amd, and that of the machine is intel"},
		},
		"another engine": {own, qemu, spore.Gap{Why: "it was frozen by Firecracker 1.10.1; installed: QEMU 7.2.22"}},
		"a version of QEMU": {
			with(qemu, format("10.0.2", "qemu-10.0/q35/tcg/0")), qemu,
			spore.Gap{Why: "it was frozen by QEMU 10.0.2, format 10.0; installed: 7.2.22 (format 7.2)", Cure: "QEMU 10.0"},
		},
		"an accelerator": {
			with(qemu, format("7.2.20", "qemu-7.2/q35/kvm/0")), qemu,
			spore.Gap{Why: "it was frozen under qemu-7.2/q35/kvm/0; installed: qemu-7.2/q35/tcg/0"},
		},
		"a guest image": {
			with(own, func(c *spore.Components) { c.GuestImage = "krn-0" }), own,
			spore.Gap{Why: "it needs the guest image krn-0, which is not installed"},
		},
		"a guest image and a version": {
			with(own, func(c *spore.Components) {
				c.GuestImage, c.StateFormat, c.EngineVersion = "krn-0", "firecracker-8.0.0/x", "1.13.1"
			}), own,
			spore.Gap{Why: "it needs the guest image krn-0, which is not installed; and it was frozen by Firecracker 1.13.1, format 8.0.0" + installed},
		},
		"an agent": {
			with(own, func(c *spore.Components) { c.Agent = "a1" }), own, spore.Gap{Why: "it was frozen with agent a1 and not a2"},
		},
	} {
		got := spore.PolicyStrict.Gap(c.bound, c.now, beside)
		if got != c.want {
			t.Errorf("%s:\n%+v, not\n%+v", name, got, c.want)
		}
		if stale := spore.PolicyStrict.Serves(c.bound, c.now, beside) == spore.CompatStale; stale != (got.Why != "") {
			t.Errorf("%s: stale %t, and %q", name, stale, got.Why)
		}
	}
	older := with(own, format("1.13.1", "firecracker-8.0.0/x"))
	if got := spore.PolicyGuestOnly.Gap(older, own, beside); got != (spore.Gap{}) {
		t.Errorf("where the guest image alone counts: %+v", got)
	}
}

// TestStaleNeedsRedo tells nodes apart by what they lack.
func TestStaleNeedsRedo(t *testing.T) {
	e := spore.StaleNeedsRedo("web", map[string]spore.Gap{"n3": {Why: "w", Cure: "c"}, "n1": {Why: "w", Cure: "c"}})
	if e.Message != "web cannot be thawed on n1, n3: w" || e.Hint != "spore template redo web --node n1 --node n3; or install c on n1, n3, beside what is there" {
		t.Errorf("%q, %q", e.Message, e.Hint)
	}
	many := map[string]spore.Gap{}
	for _, id := range []string{"n1", "n2", "n3", "n4", "n5"} {
		many[id] = spore.Gap{Why: "w" + id}
	}
	many["n5"] = many["n1"]
	e = spore.StaleNeedsRedo("web", many)
	if e.Message != "web cannot be thawed on n1, n2, n3, n4, n5: on n1, n5 wn1; on n2 wn2; on n3 wn3; and so on" || strings.Contains(e.Hint, "install") {
		t.Errorf("%q, %q", e.Message, e.Hint)
	}
}

// TestNoNetworkMode says why not where.
func TestNoNetworkMode(t *testing.T) {
	e := spore.NoNetworkMode("web", spore.NetworkIsolated, map[string]string{"n2": "no root", "n1": "no root"})
	if e.Message != "web cannot be connected in mode isolated on n1, n2: no root" || e.Field != "network.mode" || e.Reason != spore.ReasonNoNetworkMode || e.Hint == "" {
		t.Errorf("%+v", e)
	}
	if e = spore.NoNetworkMode("web", spore.NetworkUser, map[string]string{"n2": "no root", "n1": "", "n3": "no TAP"}); e.Message != "web cannot be connected in mode user on n1, n2, n3: n2: no root; n3: no TAP" {
		t.Errorf("%q", e.Message)
	}
	n := spore.Node{}
	if can, _ := n.Connects(spore.NetworkUser); !can {
		t.Error("what a node has not said is held against it")
	}
	n.Networks = []spore.NodeNetwork{{Mode: spore.NetworkNone}, {Mode: spore.NetworkUser, WhyNot: "why"}}
	for mode, want := range map[spore.NetworkMode]bool{"": true, spore.NetworkNone: true, spore.NetworkUser: false, spore.NetworkIsolated: false} {
		if can, _ := n.Connects(mode); can != want {
			t.Errorf("mode %q: %t", mode, can)
		}
	}
}

// TestEveryGapHasAWord goes through all sorts of frozen VMs and machines: what is STALE has a reason that names something, and what is not has none.
func TestEveryGapHasAWord(t *testing.T) {
	var all []spore.Components
	for _, guest := range []string{"", "krn-1", "krn-2"} {
		for _, agent := range []string{"", "a1", "a2"} {
			for _, engine := range []string{"", "qemu", "firecracker"} {
				for _, format := range []string{"", "firecracker-8.0.0/x", "firecracker-8.0.0/y", "firecracker-9.0.0/x"} {
					for _, cpu := range []string{"", "intel", "amd"} {
						all = append(all, spore.Components{GuestImage: guest, Agent: agent, Engine: engine, StateFormat: format, CPU: cpu})
					}
				}
			}
		}
	}
	beside := []spore.Components{{GuestImage: "krn-1", Agent: "a1"}, {Engine: "firecracker", StateFormat: "firecracker-8.0.0/x"}}
	for _, policy := range []spore.CompatPolicy{spore.PolicyStrict, spore.PolicyGuestOnly} {
		for _, bound := range all {
			for _, now := range all {
				gap := policy.Gap(bound, now, beside)
				if stale := policy.Serves(bound, now, beside) == spore.CompatStale; stale != (gap.Why != "") || strings.Contains(gap.Why, "components") {
					t.Fatalf("%s: frozen with %+v, on %+v: stale %t, %+v", policy, bound, now, stale, gap)
				}
			}
		}
	}
}
