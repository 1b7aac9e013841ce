package sqlite

import (
	"fmt"
	"regexp"
	"strings"
)

// answers keeps what the writer has read lately of tables that change seldom, so that of a thousand sandboxes started from one
// template only the first reads its row. It is exact: the writer is the only one who writes, and whatever it writes to any but the
// busy tables, or takes back, empties it. It is used by the writer's goroutine alone.
type answers struct {
	known map[string]*gathered // by query and parameters
	kinds map[string]kind      // of statements, by their text
}

// kind says what a statement means for the answers that are kept.
type kind int

const (
	kindOther   kind = iota // it may change anything
	kindSettled             // it reads tables that change seldom
	kindBusy                // it reads or writes what no kept answer is about
)

// busyTables have rows that are written with nearly every operation. No trigger and no cascade leads from them to others.
var busyTables = regexp.MustCompile(`\b(sandboxes|sandbox_labels|runtime_refs|replays|jobs|job_log|leases)\b`)

var (
	busyWrite    = regexp.MustCompile(`^(INSERT INTO|UPDATE|DELETE FROM) (sandboxes|sandbox_labels|runtime_refs|replays|leases|job_log) `)
	inBetween    = regexp.MustCompile(`^(SAVEPOINT|RELEASE) `)
	changesNames = regexp.MustCompile(`(?i)\b(insert|update|delete|replace|returning)\b`)
)

// Bounds of what is kept.
const (
	maxAnswers    = 1024
	maxAnswerRows = 16
)

func newAnswers() *answers {
	return &answers{known: make(map[string]*gathered), kinds: make(map[string]kind)}
}

func (a *answers) kind(query string) kind {
	if k, known := a.kinds[query]; known {
		return k
	}
	k := kindOther
	switch text := strings.TrimSpace(query); {
	case inBetween.MatchString(text), busyWrite.MatchString(text):
		k = kindBusy
	case !strings.HasPrefix(text, "SELECT ") || changesNames.MatchString(text):
	case busyTables.MatchString(text):
		k = kindBusy
	default:
		k = kindSettled
	}
	if len(a.kinds) >= maxStatements { // texts that filters put together: there is no end of them
		clear(a.kinds)
	}
	a.kinds[query] = k
	return k
}

// forget drops everything: something has changed, or was taken back.
func (a *answers) forget() { clear(a.known) }

// writes notes that a statement is about to run which may change something.
func (a *answers) writes(query string) {
	if len(a.known) > 0 && a.kind(query) == kindOther {
		a.forget()
	}
}

// key names a query with its parameters; "" when its answer is not worth keeping, or changes too often.
func (a *answers) key(query string, args []any) (string, error) {
	switch a.kind(query) {
	case kindOther:
		a.forget() // it may be one that changes something and answers with rows
		return "", nil
	case kindBusy:
		return "", nil
	}
	var key strings.Builder
	key.WriteString(query)
	for _, arg := range args {
		value, err := parameterOf(arg)
		if err != nil {
			return "", err
		}
		switch v := value.(type) {
		case string:
			fmt.Fprintf(&key, "\x00s%d:", len(v))
			key.WriteString(v)
		case int64:
			fmt.Fprintf(&key, "\x00i%d", v)
		default:
			return "", nil
		}
	}
	return key.String(), nil
}

// of answers what was read before, as a cursor of the caller's own.
func (a *answers) of(key string) *gathered {
	if found := a.known[key]; found != nil {
		return &gathered{rows: found.rows, at: -1}
	}
	return nil
}

func (a *answers) keep(key string, g *gathered) {
	if len(g.rows) > maxAnswerRows {
		return
	}
	if len(a.known) >= maxAnswers {
		a.forget()
	}
	a.known[key] = &gathered{rows: g.rows}
}
