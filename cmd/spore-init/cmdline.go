package main

import (
	"fmt"
	"slices"
	"strings"
)

// options are the kernel command line's spore.* keys.
type options struct {
	// halt is how the machine ends: "poweroff", or "reboot" for hypervisors that take a reset for the end.
	halt string
	// drives are the names of the drives in the order in which the machine has them, for hypervisors that do not show the
	// guest their serials.
	drives []string
}

const (
	haltPoweroff = "poweroff"
	haltReboot   = "reboot"
)

// parseCmdline reads the kernel command line. Keys of others are theirs; an unknown spore.* key is an error, since it
// asks for something that would not be done.
func parseCmdline(line string) (options, error) {
	o := options{halt: haltPoweroff}
	for _, word := range splitCmdline(line) {
		if word == "--" { // the rest are arguments, of which there are none
			break
		}
		key, value, _ := strings.Cut(word, "=")
		name, ours := strings.CutPrefix(key, "spore.")
		if !ours {
			continue
		}
		switch name {
		case "halt":
			if value != haltPoweroff && value != haltReboot {
				return o, fmt.Errorf("kernel command line: spore.halt is %q, not poweroff or reboot", value)
			}
			o.halt = value
		case "drives":
			o.drives = strings.Split(value, ",")
			if value == "" || slices.Contains(o.drives, "") {
				return o, fmt.Errorf("kernel command line: spore.drives is %q, not a list of names", value)
			}
		default:
			return o, fmt.Errorf("kernel command line: %q is unknown to this version", key)
		}
	}
	return o, nil
}

// splitCmdline splits at white space outside double quotes, as the kernel does, and drops the quotes.
func splitCmdline(line string) []string {
	var words []string
	var word strings.Builder
	var quoted, any bool
	flush := func() {
		if any {
			words = append(words, word.String())
		}
		word.Reset()
		any = false
	}
	for i := 0; i < len(line); i++ {
		switch c := line[i]; {
		case c == '"':
			quoted, any = !quoted, true
		case !quoted && (c == ' ' || c == '\t' || c == '\n' || c == '\r' || c == 0):
			flush()
		default:
			word.WriteByte(c)
			any = true
		}
	}
	flush()
	return words
}
