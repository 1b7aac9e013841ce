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
	switch {
	case c.t.IsZero():
		return int64(0), nil
	case c.t.Before(earliest):
		return int64(math.MinInt64), nil
	case c.t.After(latest):
		return int64(math.MaxInt64), nil
	}
	return c.t.UnixNano(), nil
}

func (c *timeColumn) Scan(src any) error {
	nanos, ok := src.(int64)
	if !ok {
		return fmt.Errorf("a time is kept as %T", src)
	}
	*c.t = time.Time{}
	if nanos != 0 {
		*c.t = time.Unix(0, nanos).UTC()
	}
	return nil
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
	const replacement = "\uFFFD"
	return strings.ReplaceAll(strings.ToValidUTF8(*c.s, replacement), "\x00", replacement), nil
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
	if err := json.Unmarshal(text, &fresh); err != nil {
		return err
	}
	*c.v = fresh
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
	if err := json.Unmarshal(text, &fresh); err != nil {
		return err
	}
	if len(fresh) == 0 {
		fresh = nil
	}
	*c.m = fresh
	return nil
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
