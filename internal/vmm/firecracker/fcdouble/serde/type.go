// Package serde checks JSON against the shape that a request body must have, and words its complaints, with line and column, the
// way Rust's serde_json does: the messages are part of Firecracker's API that people read and programs match.
package serde

// Type is the shape of a JSON value.
type Type interface{ read(r *reader) error }

// Field is one member of a Struct.
type Field struct {
	Name     string
	Type     Type
	Required bool
}

// Struct is an object with known members.
type Struct struct {
	Name   string
	Fields []Field
	Open   bool // unknown members are passed over instead of refused
}

// Optional is a value that may be null.
type Optional struct{ Of Type }

// Integer is a whole number from Min to Max; Name is how the type is called.
type Integer struct {
	Name string
	Max  uint64
}

// Enum is one of a few strings.
type Enum []string

// List is an array.
type List struct{ Of Type }

// Text is a string; Check, when set, may refuse it with a message.
type Text struct {
	Expect string // how a wrong type is told what was expected; default "a string"
	Check  func(string) string
}

type (
	boolean struct{}
	any_    struct{}
)

// The types without parameters.
var (
	U8    = Integer{"u8", 1<<8 - 1}
	U16   = Integer{"u16", 1<<16 - 1}
	U32   = Integer{"u32", 1<<32 - 1}
	U64   = Integer{"u64", 1<<64 - 1}
	Usize = Integer{"usize", 1<<64 - 1}

	String Type = Text{}
	Path   Type = Text{Expect: "path string"}
	Bool   Type = boolean{}
	Any    Type = any_{}
)

// Error is a complaint about a body.
type Error struct {
	Text         string
	Line, Column int
}

func (e *Error) Error() string { return e.Text }

// Check says what is wrong with body, or nil.
func Check(t Type, body []byte) error {
	r := &reader{text: body}
	if err := t.read(r); err != nil {
		return err
	}
	if r.space(); r.at < len(r.text) {
		return r.failPeek("trailing characters")
	}
	return nil
}
