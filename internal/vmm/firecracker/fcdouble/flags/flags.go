// Package flags reads command lines the way Firecracker and its jailer do: long options only, values in the next word, nothing
// abbreviated, nothing twice.
package flags

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode"
)

// Flag is one option that a program knows.
type Flag struct {
	Name     string
	Value    bool // the next word is its value
	Multiple bool // may be given more than once; implies Value
	Required bool
	Requires string   // another flag that must be there too
	Forbids  []string // flags that must not
	Default  string
}

// Set is a parsed command line.
type Set struct {
	values map[string][]string
	Extra  []string // what follows "--"
}

// Error is a refused command line: Kind is the name of the reason, Args what it is about.
type Error struct {
	Kind string
	Args []string
	text string
}

func (e *Error) Error() string { return e.text }

// Debug is the error as the programs print it on standard error.
func (e *Error) Debug() string {
	quoted := make([]string, len(e.Args))
	for i, a := range e.Args {
		quoted[i] = fmt.Sprintf("%q", a)
	}
	return e.Kind + "(" + strings.Join(quoted, ", ") + ")"
}

func refuse(kind, format string, args ...string) *Error {
	list := make([]any, len(args))
	for i, a := range args {
		list[i] = a
	}
	return &Error{Kind: kind, Args: args, text: fmt.Sprintf(format, list...)}
}

// Parse reads args, without the program's name. "--help", "-h" and "--version" outrank everything else, as in the originals.
func Parse(known []Flag, args []string) (*Set, *Error) {
	s := &Set{values: map[string][]string{}}
	if i := slices.Index(args, "--"); i >= 0 {
		args, s.Extra = args[:i], args[i+1:]
	}
	byName := map[string]Flag{}
	for _, f := range known {
		byName[f.Name] = f
	}
	switch {
	case slices.Contains(args, "--help"), slices.Contains(args, "-h"):
		s.values["help"] = []string{"true"}
		return s, nil
	case slices.Contains(args, "--version"):
		s.values["version"] = []string{"true"}
		return s, nil
	}
	for i := 0; i < len(args); i++ {
		name, long := strings.CutPrefix(args[i], "--")
		f, ok := byName[name]
		if !long || !ok {
			return nil, refuse("UnexpectedArgument", "Found argument '%s' which wasn't expected, or isn't valid in this context.", name)
		}
		if len(s.values[name]) > 0 && !f.Multiple {
			return nil, refuse("DuplicateArgument", "The argument '%s' was provided more than once.", name)
		}
		value := "true"
		if f.Value || f.Multiple {
			if i++; i == len(args) || strings.HasPrefix(args[i], "--") {
				return nil, refuse("MissingValue", "The argument '%s' requires a value, but none was supplied.", name)
			}
			value = args[i]
		}
		s.values[name] = append(s.values[name], value)
	}
	// The originals check their flags in the order of the alphabet.
	for _, name := range slices.Sorted(maps.Keys(byName)) {
		f := byName[name]
		given := len(s.values[name]) > 0
		if f.Required && !given {
			return nil, refuse("MissingArgument", "Argument '%s' required, but not found.", name)
		}
		if given && f.Requires != "" && !slices.Contains(args, "--"+f.Requires) {
			return nil, refuse("MissingArgument", "Argument '%s' required, but not found.", f.Requires)
		}
		for _, other := range f.Forbids {
			if given && slices.Contains(args, "--"+other) {
				return nil, refuse("ForbiddenArgument", "Argument '%[2]s' cannot be used together with argument '%[1]s'.", name, other)
			}
		}
		if !given && f.Default != "" {
			s.values[name] = []string{f.Default}
		}
	}
	return s, nil
}

// Value is the value of a flag, or "".
func (s *Set) Value(name string) string {
	if v := s.values[name]; len(v) > 0 {
		return v[0]
	}
	return ""
}

// Values are all values of a flag that may be given more than once.
func (s *Set) Values(name string) []string { return s.values[name] }

// Has says whether a flag was given or has a default.
func (s *Set) Has(name string) bool { return len(s.values[name]) > 0 }

// InvalidID says what is wrong with the name of a VM, in the form of the originals' debugging output; "" if it is a good one.
func InvalidID(id string) string {
	if n := len(id); n < 1 || n > 64 {
		return fmt.Sprintf("InvalidLen(%d, 1, 64)", n)
	}
	for i, c := range []rune(id) {
		if c != '-' && !unicode.IsLetter(c) && !unicode.IsNumber(c) {
			return fmt.Sprintf("InvalidChar('%c', %d)", c, i)
		}
	}
	return ""
}
