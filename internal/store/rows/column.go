package rows

import (
	"database/sql/driver"
	"encoding/json"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/sporevm/spore"
)

// Columns that need translation implement both directions, so that one list of fields serves inserts, updates and scans.

// timeColumn keeps a time as nanoseconds since 1970, and the zero time as 0. Times that do not fit (before 1678, after
// 2262) are kept as the nearest that does.
type timeColumn struct{ t *time.Time }

func asTime(t *time.Time) *timeColumn { return &timeColumn{t} }

var (
	earliest = time.Unix(0, math.MinInt64)
	latest   = time.Unix(0, math.MaxInt64)
)

func (c *timeColumn) Value() (driver.Value, error) {
	return nanos(*c.t), nil
}

func (c *timeColumn) Scan(src any) error {
	nanos, ok := src.(int64)
	if !ok {
		return fmt.Errorf("a time is kept as %T", src)
	}
	*c.t = timeOf(nanos)
	return nil
}

// nanos is how a time is kept.
func nanos(t time.Time) int64 {
	switch {
	case t.IsZero():
		return 0
	case t.Before(earliest):
		return math.MinInt64
	case t.After(latest):
		return math.MaxInt64
	}
	return t.UnixNano()
}

// timeOf is the time that nanos made a number of.
func timeOf(nanos int64) time.Time {
	if nanos == 0 {
		return time.Time{}
	}
	return time.Unix(0, nanos).UTC()
}

// flagColumn keeps a flag as 0 or 1, which every database can compare with the same literals.
type flagColumn struct{ b *bool }

func asFlag(b *bool) *flagColumn { return &flagColumn{b} }

func (c *flagColumn) Value() (driver.Value, error) {
	if *c.b {
		return int64(1), nil
	}
	return int64(0), nil
}

func (c *flagColumn) Scan(src any) error {
	n, ok := src.(int64)
	if !ok {
		return fmt.Errorf("a flag is kept as %T", src)
	}
	*c.b = n != 0
	return nil
}

// textColumn keeps free text, such as what a guest printed last. Databases hold text to be proper UTF-8 without zero bytes; the
// rest is replaced rather than letting a guest's babble make a write fail.
type textColumn struct{ s *string }

func asText(s *string) *textColumn { return &textColumn{s} }

func (c *textColumn) Value() (driver.Value, error) {
	return properText(*c.s), nil
}

func properText(s string) string {
	const replacement = "\uFFFD"
	return strings.ReplaceAll(strings.ToValidUTF8(s, replacement), "\x00", replacement)
}

func (c *textColumn) Scan(src any) error {
	text, err := textOf(src)
	*c.s = string(text)
	return err
}

// jsonColumn keeps a value as a JSON document.
type jsonColumn[T any] struct{ v *T }

func asJSON[T any](v *T) *jsonColumn[T] { return &jsonColumn[T]{v} }

func (c *jsonColumn[T]) Value() (driver.Value, error) {
	text, err := json.Marshal(c.v)
	return string(text), err
}

func (c *jsonColumn[T]) Scan(src any) error {
	text, err := textOf(src)
	if err != nil {
		return err
	}
	var fresh T
	if t := string(text); t != "{}" && t != "null" {
		err = json.Unmarshal(text, &fresh)
	}
	*c.v = fresh
	return err
}

// documentColumn keeps a value as a JSON document of another form.
type documentColumn[T, D any] struct {
	v     *T
	store func(T) D
	load  func(D) T
}

func asDocument[T, D any](v *T, store func(T) D, load func(D) T) *documentColumn[T, D] {
	return &documentColumn[T, D]{v, store, load}
}

func (c *documentColumn[T, D]) Value() (driver.Value, error) {
	d := c.store(*c.v)
	return asJSON(&d).Value()
}

func (c *documentColumn[T, D]) Scan(src any) error {
	var d D
	if err := asJSON(&d).Scan(src); err != nil {
		return err
	}
	*c.v = c.load(d)
	return nil
}

// mapColumn keeps a map of strings as a JSON object. None and empty are the same: "{}", read back as nil.
type mapColumn struct{ m *map[string]string }

func asMap(m *map[string]string) *mapColumn { return &mapColumn{m} }

func (c *mapColumn) Value() (driver.Value, error) {
	if len(*c.m) == 0 {
		return "{}", nil
	}
	text, err := json.Marshal(*c.m)
	return string(text), err
}

func (c *mapColumn) Scan(src any) error {
	text, err := textOf(src)
	if err != nil {
		return err
	}
	var fresh map[string]string
	if string(text) != "{}" {
		err = json.Unmarshal(text, &fresh)
	}
	*c.m = fresh
	return err
}

func textOf(src any) ([]byte, error) {
	switch s := src.(type) {
	case string:
		return []byte(s), nil
	case []byte:
		return s, nil
	}
	return nil, fmt.Errorf("a document is kept as %T", src)
}

func damagedRow(err error) error {
	return spore.Errorf(spore.CodeDamaged, "a row of the database cannot be read").WithCause(err).
		WithHint("run spore fsck; restore the database from a backup if it is damaged")
}
