package spore

import (
	"slices"
	"strings"
)

// Gap is what keeps a machine from thawing a frozen VM; the zero value is none.
type Gap struct {
	Why  string // a clause of which the frozen VM is the subject: "it was frozen by ..."
	Cure string // what would close it when installed there beside what is there; empty when nothing that is known would
}

// noGapKnown is all that is left to say of what was found STALE before its node stopped telling what it has.
const noGapKnown = "it was frozen with components that are no longer there"

// Gap says what of bound a machine lacks, when Serves finds it STALE there; see Serves.
func (p CompatPolicy) Gap(bound, current Components, installed []Components) Gap {
	if p.Serves(bound, current, installed) != CompatStale {
		return Gap{}
	}
	var gap Gap
	engine := EngineGap(bound, current, installed)
	if p == PolicyGuestOnly {
		engine = Gap{}
	}
	if guest := guestGap(bound, current, installed); guest == "" {
		gap = engine
	} else if gap.Why = guest; engine.Why != "" {
		gap.Why += "; and " + engine.Why
	}
	if gap.Why == "" {
		gap.Why = noGapKnown
	}
	return gap
}

// guestGap says what of bound's guest image is not there, as a clause.
func guestGap(bound, current Components, installed []Components) string {
	if bound.GuestImage == "" || current.GuestImage == "" {
		return ""
	}
	guest := current
	if bound.GuestImage != current.GuestImage {
		at := slices.IndexFunc(installed, func(c Components) bool { return c.GuestImage == bound.GuestImage })
		if at < 0 {
			return "it needs the guest image " + bound.GuestImage + ", which is not installed"
		}
		guest = installed[at]
	}
	for _, part := range []struct{ noun, bound, now string }{{"agent", bound.Agent, guest.Agent}, {"kernel", bound.Kernel, guest.Kernel}} {
		if part.bound != "" && part.now != "" && part.bound != part.now {
			return "it was frozen with " + part.noun + " " + part.bound + " and not " + part.now
		}
	}
	return ""
}

// EngineGap says why the engines of a machine do not thaw what was frozen with bound, whatever its guest image. What one side does
// not know is no gap.
func EngineGap(bound, current Components, installed []Components) Gap {
	unlike := func(a, b string) bool { return a != "" && b != "" && a != b }
	if unlike(bound.Engine, current.Engine) {
		return Gap{Why: "it was frozen by " + engineWords(bound) + "; installed: " + engineWords(current)}
	}
	processor := ""
	if bound.CPU != "" && bound.CPU != current.CPU {
		processor = "it uses features of the processor " + bound.CPU + ", and that of the machine is "
		if processor += current.CPU; current.CPU == "" {
			processor += "emulated"
		}
	}
	there := []Components{current}
	for _, c := range installed {
		if c.GuestImage == "" && c.Engine == bound.Engine && c.StateFormat != current.StateFormat {
			there = append(there, c)
		}
	}
	name := formatName(bound)
	switch {
	case !unlike(bound.StateFormat, current.StateFormat) || slices.ContainsFunc(there, func(c Components) bool { return c.StateFormat == bound.StateFormat }):
		return Gap{Why: processor}
	case slices.ContainsFunc(there, func(c Components) bool { return formatName(c) == name }):
		// The version is right, and what else the format depends on is not.
		if processor == "" {
			processor = "it was frozen under " + bound.StateFormat + "; installed: " + current.StateFormat
		}
		return Gap{Why: processor}
	}
	var have []string
	for _, c := range there {
		words := "format " + formatName(c)
		if c.EngineVersion != "" {
			words = c.EngineVersion + " (" + words + ")"
		}
		have = append(have, words)
	}
	gap := Gap{Why: "it was frozen by " + engineWords(bound) + ", format " + name + "; installed: " + strings.Join(have, ", ")}
	if processor != "" { // and so no version helps
		gap.Why += "; and " + processor
		return gap
	}
	gap.Cure = cure(bound)
	return gap
}

// cure is what reads bound's device state, as people say it.
func cure(bound Components) string {
	releases := ReadBy(bound.Engine, bound.StateFormat)
	if releases == "" {
		releases = bound.EngineVersion // which reads what it has written
	}
	if releases == "" {
		return ""
	}
	return engineName(bound.Engine) + " " + releases
}

// engineWords are an engine with its version, as far as that is known.
func engineWords(c Components) string {
	return strings.TrimSpace(engineName(c.Engine) + " " + c.EngineVersion)
}

// engineName is an engine's name as its makers write it.
func engineName(engine string) string {
	switch engine {
	case "":
		return "an engine that is not known"
	case "qemu":
		return "QEMU"
	case "firecracker":
		return "Firecracker"
	}
	return engine
}

// formatName is the part of a format of device state that depends on the engine's version alone: "8.0.0" of
// "firecracker-8.0.0/5f1d7a84be3c90a1".
func formatName(c Components) string {
	name, _, _ := strings.Cut(strings.TrimPrefix(c.StateFormat, c.Engine+"-"), "/")
	return name
}

// firecrackers are the releases of Firecracker that read each of its snapshot formats.
var firecrackers = map[string]string{
	"3.0.0": "1.10.0", "4.0.0": "1.10.1", "5.0.0": "1.11", "6.0.0": "1.12", "8.0.0": "1.13 or 1.14", "9.0.0": "1.15", "10.0.0": "1.16", "11.0.0": "1.17.0-dev",
	"12.0.0": "1.17",
}

// ReadBy names the releases of an engine that load device state of a format, such as "1.13 or 1.14"; "" when none is known.
func ReadBy(engine, stateFormat string) string {
	name := formatName(Components{Engine: engine, StateFormat: stateFormat})
	switch engine {
	case "firecracker":
		return firecrackers[name]
	case "qemu":
		return name // it has the version's
	}
	return ""
}
