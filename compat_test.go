package spore_test

import (
	"testing"

	"github.com/sporevm/spore"
)

// TestServesSideBySide looks at machines that hold guest images and engines of several versions beside their own.
func TestServesSideBySide(t *testing.T) {
	own := spore.Components{GuestImage: "krn-2", Agent: "a2", Kernel: "6.2", Engine: "firecracker", StateFormat: "firecracker-11.0.0/x", CPU: "intel"}
	beside := []spore.Components{
		{GuestImage: "krn-1", Agent: "a1", Kernel: "6.1"},
		{Engine: "firecracker", StateFormat: "firecracker-8.0.0/x"},
	}
	with := func(edit func(*spore.Components)) spore.Components {
		c := own
		edit(&c)
		return c
	}
	for name, c := range map[string]struct {
		bound spore.Components
		want  spore.CompatStatus
	}{
		"its own":          {own, spore.CompatOK},
		"the older format": {with(func(c *spore.Components) { c.StateFormat = "firecracker-8.0.0/x" }), spore.CompatOK},
		"the older image too": {with(func(c *spore.Components) {
			c.GuestImage, c.Agent, c.Kernel, c.StateFormat = "krn-1", "a1", "6.1", "firecracker-8.0.0/x"
		}), spore.CompatOK},
		"a format of nobody": {with(func(c *spore.Components) { c.StateFormat = "firecracker-10.0.0/x" }), spore.CompatStale},
		"another processor":  {with(func(c *spore.Components) { c.StateFormat = "firecracker-8.0.0/y" }), spore.CompatStale},
		"another engine":     {with(func(c *spore.Components) { c.Engine, c.StateFormat = "qemu", "firecracker-8.0.0/x" }), spore.CompatStale},
		"an unknown format":  {with(func(c *spore.Components) { c.StateFormat = "" }), spore.CompatUnknown},
		"no guest image":     {with(func(c *spore.Components) { c.GuestImage = "" }), spore.CompatUnknown},
		"an image of nobody": {with(func(c *spore.Components) { c.GuestImage = "krn-0" }), spore.CompatStale},
	} {
		if got := spore.PolicyStrict.Serves(c.bound, own, beside); got != c.want {
			t.Errorf("%s: %s, not %s", name, got, c.want)
		}
	}
}
