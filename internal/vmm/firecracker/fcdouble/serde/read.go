package serde

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// maxDepth is how deep values may nest.
const maxDepth = 128

type reader struct {
	text  []byte
	at    int
	depth int
}

// fail is a complaint about what was read last, failPeek one about what comes next.
func (r *reader) fail(format string, args ...any) error { return r.failAt(r.at, format, args...) }
func (r *reader) failPeek(format string, args ...any) error {
	return r.failAt(min(len(r.text), r.at+1), format, args...)
}

func (r *reader) failAt(at int, format string, args ...any) error {
	before := r.text[:at]
	line := 1 + bytes.Count(before, []byte("\n"))
	column := len(before) - (bytes.LastIndexByte(before, '\n') + 1)
	return &Error{Text: fmt.Sprintf("%s at line %d column %d", fmt.Sprintf(format, args...), line, column), Line: line, Column: column}
}

func (r *reader) space() {
	for r.at < len(r.text) && strings.IndexByte(" \t\r\n", r.text[r.at]) >= 0 {
		r.at++
	}
}

// peek passes over white space and shows the next byte, 0 at the end.
func (r *reader) peek() byte {
	if r.space(); r.at < len(r.text) {
		return r.text[r.at]
	}
	return 0
}

func (r *reader) enter() error {
	if r.depth++; r.depth > maxDepth {
		return r.failPeek("recursion limit exceeded")
	}
	return nil
}

// wrong reads a value that is not of the expected type and says so.
func (r *reader) wrong(expected string) error {
	switch c := r.peek(); {
	case r.at >= len(r.text):
		return r.failPeek("EOF while parsing a value")
	case c == '"':
		s, err := r.string()
		if err != nil {
			return err
		}
		return r.fail("invalid type: string %s, expected %s", strconv.Quote(s), expected)
	case c == '[':
		return r.fail("invalid type: sequence, expected %s", expected)
	case c == '{':
		return r.fail("invalid type: map, expected %s", expected)
	case c == '-' || c >= '0' && c <= '9':
		number, err := r.number()
		if err != nil {
			return err
		}
		if text, ok := float(number); ok {
			return r.fail("invalid type: floating point `%s`, expected %s", text, expected)
		}
		return r.fail("invalid type: integer `%s`, expected %s", number, expected)
	}
	for word, text := range map[string]string{"null": "null", "true": "boolean `true`", "false": "boolean `false`"} {
		if r.text[r.at] == word[0] {
			if err := r.word(word); err != nil {
				return err
			}
			return r.fail("invalid type: %s, expected %s", text, expected)
		}
	}
	return r.failPeek("expected value")
}

func (r *reader) word(word string) error {
	for i := range len(word) {
		if r.at >= len(r.text) {
			return r.fail("EOF while parsing a value")
		}
		r.at++
		if r.text[r.at-1] != word[i] {
			return r.fail("expected ident")
		}
	}
	return nil
}

func (r *reader) number() (string, error) {
	start := r.at
	digits := func() bool {
		from := r.at
		for r.at < len(r.text) && r.text[r.at] >= '0' && r.text[r.at] <= '9' {
			r.at++
		}
		return r.at > from
	}
	bad := func() error {
		if r.at >= len(r.text) {
			return r.fail("EOF while parsing a value")
		}
		return r.failPeek("invalid number")
	}
	if r.text[r.at] == '-' {
		r.at++
	}
	first := r.at
	if !digits() {
		return "", bad()
	}
	if r.text[first] == '0' && r.at > first+1 {
		r.at = first + 1
		return "", r.failPeek("invalid number")
	}
	if r.at < len(r.text) && r.text[r.at] == '.' {
		if r.at++; !digits() {
			return "", bad()
		}
	}
	if r.at < len(r.text) && (r.text[r.at] == 'e' || r.text[r.at] == 'E') {
		if r.at++; r.at < len(r.text) && (r.text[r.at] == '+' || r.text[r.at] == '-') {
			r.at++
		}
		if !digits() {
			return "", bad()
		}
	}
	return string(r.text[start:r.at]), nil
}

// float is how Rust shows a number that is not whole, or too large to be.
func float(number string) (string, bool) {
	if !strings.ContainsAny(number, ".eE") {
		return "", false
	}
	f, err := strconv.ParseFloat(number, 64)
	if err != nil {
		return number, true
	}
	text := strconv.FormatFloat(f, 'f', -1, 64)
	if !strings.Contains(text, ".") {
		text += ".0"
	}
	return text, true
}

// string reads the string that the next byte opens.
func (r *reader) string() (string, error) {
	start := r.at
	for r.at++; r.at < len(r.text); r.at++ {
		switch c := r.text[r.at]; {
		case c == '"':
			r.at++
			var s string
			if err := json.Unmarshal(r.text[start:r.at], &s); err != nil {
				return "", r.fail("invalid escape")
			}
			return s, nil
		case c == '\\':
			r.at++
		case c < ' ':
			r.at++
			return "", r.fail("control character (\\u0000-\\u001F) found while parsing a string")
		}
	}
	r.at = len(r.text)
	return "", r.fail("EOF while parsing a string")
}

func (t Text) read(r *reader) error {
	if r.peek() != '"' {
		expected := t.Expect
		if expected == "" {
			expected = "a string"
		}
		return r.wrong(expected)
	}
	s, err := r.string()
	if err != nil {
		return err
	}
	if t.Check != nil {
		if message := t.Check(s); message != "" {
			return later(message)
		}
	}
	return nil
}

// later is a complaint of a type itself, which knows no place: the struct around it is read to its end, if that is what follows.
type later string

func (e later) Error() string { return string(e) }

func (boolean) read(r *reader) error {
	switch r.peek() {
	case 't':
		return r.word("true")
	case 'f':
		return r.word("false")
	}
	return r.wrong("a boolean")
}

func (t Integer) read(r *reader) error {
	c := r.peek()
	if c != '-' && (c < '0' || c > '9') {
		return r.wrong(t.Name)
	}
	number, err := r.number()
	if err != nil {
		return err
	}
	if n, err := strconv.ParseUint(number, 10, 64); err == nil && n <= t.Max {
		return nil
	}
	if text, ok := float(number); ok {
		return r.fail("invalid type: floating point `%s`, expected %s", text, t.Name)
	}
	return r.fail("invalid value: integer `%s`, expected %s", number, t.Name)
}

func (t Optional) read(r *reader) error {
	if r.peek() == 'n' {
		return r.word("null")
	}
	return t.Of.read(r)
}

func (t Enum) read(r *reader) error {
	if c := r.peek(); c != '"' {
		if r.at >= len(r.text) {
			return r.failPeek("EOF while parsing a value")
		}
		return r.failPeek("expected value")
	}
	s, err := r.string()
	if err != nil {
		return err
	}
	if slices.Contains(t, s) {
		return nil
	}
	return r.fail("unknown variant `%s`, expected %s", s, oneOf(t))
}

func (t List) read(r *reader) error {
	if r.peek() != '[' {
		return r.wrong("a sequence")
	}
	return r.elements(func() error { return t.Of.read(r) })
}

func (r *reader) elements(each func() error) error {
	if err := r.enter(); err != nil {
		return err
	}
	r.at++
	for first := true; ; first = false {
		c := r.peek()
		switch {
		case r.at >= len(r.text):
			return r.failPeek("EOF while parsing a list")
		case c == ']':
			r.at++
			r.depth--
			return nil
		case c == ',' && !first:
			r.at++
			if r.peek() == ']' {
				return r.failPeek("trailing comma")
			}
		case !first:
			return r.failPeek("expected `,` or `]`")
		}
		if err := each(); err != nil {
			return err
		}
	}
}

// members calls each with the name of each member; each reads the value.
func (r *reader) members(each func(name string) error) error {
	if err := r.enter(); err != nil {
		return err
	}
	r.at++
	for first := true; ; first = false {
		c := r.peek()
		switch {
		case r.at >= len(r.text):
			return r.failPeek("EOF while parsing an object")
		case c == '}':
			r.at++
			r.depth--
			return nil
		case c == ',' && !first:
			r.at++
			c = r.peek()
			if c == '}' {
				return r.failPeek("trailing comma")
			}
			if r.at >= len(r.text) {
				return r.failPeek("EOF while parsing a value")
			}
		case !first:
			return r.failPeek("expected `,` or `}`")
		}
		if c != '"' {
			return r.failPeek("key must be a string")
		}
		name, err := r.string()
		if err != nil {
			return err
		}
		if err := each(name); err != nil {
			return err
		}
	}
}

// colon stands between a member's name and its value.
func (r *reader) colon() error {
	switch c := r.peek(); {
	case r.at >= len(r.text):
		return r.failPeek("EOF while parsing an object")
	case c != ':':
		return r.failPeek("expected `:`")
	}
	r.at++
	return nil
}

func (t Struct) read(r *reader) error {
	if c := r.peek(); c == '[' {
		return r.failAt(min(len(r.text), r.at+2), "invalid length 0, expected struct %s with %s", t.Name, count(len(t.Fields)))
	} else if c != '{' {
		return r.wrong("struct " + t.Name)
	}
	seen := map[string]bool{}
	err := r.members(func(name string) error {
		i := slices.IndexFunc(t.Fields, func(f Field) bool { return f.Name == name })
		switch {
		case i < 0 && !t.Open:
			return r.fail("unknown field `%s`, expected %s", name, oneOf(t.names()))
		case seen[name]:
			return r.fail("duplicate field `%s`", name)
		}
		if err := r.colon(); err != nil {
			return err
		}
		if i < 0 {
			return Any.read(r)
		}
		seen[name] = true
		return t.Fields[i].Type.read(r)
	})
	if message, ok := err.(later); ok {
		if r.peek() == '}' {
			r.at++
		}
		return r.fail("%s", string(message))
	}
	if err != nil {
		return err
	}
	for _, f := range t.Fields {
		if f.Required && !seen[f.Name] {
			return r.fail("missing field `%s`", f.Name)
		}
	}
	return nil
}

func count(n int) string {
	if n == 1 {
		return "1 element"
	}
	return fmt.Sprintf("%d elements", n)
}

func (t Struct) names() []string {
	names := make([]string, len(t.Fields))
	for i, f := range t.Fields {
		names[i] = f.Name
	}
	return names
}

func oneOf(names []string) string {
	quoted := make([]string, len(names))
	for i, n := range names {
		quoted[i] = "`" + n + "`"
	}
	switch len(names) {
	case 1, 2:
		return strings.Join(quoted, " or ")
	}
	return "one of " + strings.Join(quoted, ", ")
}

func (any_) read(r *reader) error {
	switch c := r.peek(); {
	case c == '"':
		_, err := r.string()
		return err
	case c == '[':
		return r.elements(func() error { return Any.read(r) })
	case c == '{':
		return r.members(func(string) error {
			if err := r.colon(); err != nil {
				return err
			}
			return Any.read(r)
		})
	case c == '-' || c >= '0' && c <= '9':
		_, err := r.number()
		return err
	case c == 't':
		return r.word("true")
	case c == 'f':
		return r.word("false")
	case c == 'n':
		return r.word("null")
	}
	if r.at >= len(r.text) {
		return r.failPeek("EOF while parsing a value")
	}
	return r.failPeek("expected value")
}
