package rows

import (
	"fmt"
	"slices"
	"strings"

	"github.com/sporevm/spore"
)

// transition is how a row with a state machine changes: the row is written if the state that it is in now may become the
// next one. The check and the write are one statement, so no rival can come between them.
type transition[S ~string] struct {
	table, key, column string // key: its columns; column: where the state is
	noun               string // what messages call the row
	machine            spore.Transitions[S]

	// The columns of the row. The fixed ones are written again only when they differ, which is seldom: most indexes are over
	// them alone, and are spared.
	fixed, changing string

	statements map[S]statements
}

// statements are what a row is written with on its way to a certain state.
type statements struct {
	from               []any // the states that may become it
	changing, all, put string
}

// prepared makes the texts of the statements.
func (m transition[S]) prepared() transition[S] {
	m.statements = make(map[S]statements)
	for next := range m.machine {
		var s statements
		for state := range m.machine {
			if m.machine.Allows(state, next) {
				s.from = append(s.from, string(state))
			}
		}
		// Spelled with OR: for a longer IN, SQLite makes a table each time.
		allowed := "(" + strings.TrimSuffix(strings.Repeat(m.table+"."+m.column+" = ? OR ", len(s.from)), " OR ") + ")"
		target := " WHERE " + equal(m.key) + " AND " + allowed
		s.changing = "UPDATE " + m.table + " SET " + assignments(m.changing) + target + " AND " + assignments(m.fixed)
		s.all = "UPDATE " + m.table + " SET " + assignments(m.columns()) + target
		s.put = upsertion(m.table, m.key, m.columns()) + " WHERE " + allowed
		m.statements[next] = s
	}
	return m
}

func (m transition[S]) columns() string { return m.fixed + ", " + m.changing }

// writeChanging writes the changing columns of a row, and says whether it did: its state must allow it, and its fixed columns be
// as they are now. fields are the values of all columns.
func (m transition[S]) writeChanging(tx *Tx, next S, fields []any, key ...any) (written bool, err error) {
	s, known := m.statements[next]
	if !known {
		return false, m.noSuchState(next, key)
	}
	fixed := len(columnsOf(m.fixed))
	affected, err := tx.exec(s.changing, slices.Concat(fields[fixed:], key, s.from, fields[:fixed])...)
	return affected > 0, err
}

// writeAll writes a row, provided that its state allows it.
func (m transition[S]) writeAll(tx *Tx, next S, fields []any, key ...any) error {
	s, known := m.statements[next]
	if !known {
		return m.noSuchState(next, key)
	}
	affected, err := tx.exec(s.all, slices.Concat(fields, key, s.from)...)
	if err != nil || affected > 0 {
		return err
	}
	return m.refusal(tx, next, key)
}

// write is writeChanging or else writeAll, and says whether it was the latter.
func (m transition[S]) write(tx *Tx, next S, fields []any, key ...any) (all bool, err error) {
	written, err := m.writeChanging(tx, next, fields, key...)
	if err != nil || written {
		return false, err
	}
	return true, m.writeAll(tx, next, fields, key...)
}

// put inserts a row, or writes all of it, provided that its state allows it.
func (m transition[S]) put(tx *Tx, next S, fields []any, key ...any) error {
	s, known := m.statements[next]
	if !known {
		return m.noSuchState(next, key)
	}
	affected, err := tx.exec(s.put, slices.Concat(fields, s.from)...)
	if err != nil || affected > 0 {
		return err
	}
	return m.refusal(tx, next, key)
}

// refusal says why a row was not written.
func (m transition[S]) refusal(tx *Tx, next S, key []any) error {
	if err := m.check(tx, next, key...); err != nil {
		return err
	}
	return spore.Errorf(spore.CodeConflict, "%s %s was changed by somebody else at the same time", m.noun, named(key)).
		WithHint("look at it again, then repeat what you meant to do")
}

// check is an error when there is no such row, or its state forbids the next one.
func (m transition[S]) check(tx *Tx, next S, key ...any) error {
	var now string
	found, err := tx.scalar(&now, "SELECT "+m.column+" FROM "+m.table+" WHERE "+equal(m.key), key...)
	if err != nil {
		return err
	}
	if !found {
		return unknown(m.noun, key...)
	}
	return m.machine.Check(m.noun+" "+named(key), S(now), next)
}

func (m transition[S]) noSuchState(next S, key []any) error {
	return spore.Errorf(spore.CodeConflict, "%s %s cannot become %q: there is no such state", m.noun, named(key), next)
}

// unknown says that there is no such row.
func unknown(noun string, key ...any) error {
	id := named(key)
	switch {
	case noun == "job":
		return spore.Errorf(spore.CodeNotFound, "there is no job %s", id).Because(spore.ReasonOperationNotFound)
	case noun == "template" && strings.HasPrefix(id, spore.SnapshotPrefix):
		return spore.Errorf(spore.CodeNotFound, "there is no snapshot %s", id).Because(spore.ReasonSnapshotNotFound)
	case noun == "template":
		return spore.Errorf(spore.CodeNotFound, "there is no template %s", id).Because(spore.ReasonTemplateNotFound)
	}
	return spore.Errorf(spore.CodeNotFound, "there is no %s %s", noun, id)
}

// named renders the key of a row for people.
func named(key []any) string {
	parts := make([]string, len(key))
	for i, k := range key {
		parts[i] = fmt.Sprint(k)
	}
	return strings.Join(parts, " on node ")
}
