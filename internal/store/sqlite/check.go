package sqlite

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/sporevm/spore"
)

// Check reads the whole file and fails with spore.CodeDamaged when its pages, its indexes or the references between its rows
// are not sound. It changes nothing and holds up nobody.
func (s *Store) Check(ctx context.Context) error {
	for _, pragma := range []string{"PRAGMA integrity_check(10)", "PRAGMA foreign_key_check"} {
		found, err := s.findings(ctx, pragma)
		if err != nil {
			return err
		}
		if len(found) > 0 {
			return spore.Errorf(spore.CodeDamaged, "the database file is damaged: %s", strings.Join(found, "; ")).
				WithHint("stop the server and restore spore.db from a backup")
		}
	}
	return nil
}

func (s *Store) findings(ctx context.Context, pragma string) (found []string, err error) {
	cursor, err := s.reads.QueryContext(ctx, pragma)
	if err != nil {
		return nil, translate(err)
	}
	defer func() { err = errors.Join(err, translate(cursor.Close())) }()
	columns, err := cursor.Columns()
	if err != nil {
		return nil, translate(err)
	}
	for cursor.Next() {
		values, targets := make([]any, len(columns)), make([]any, len(columns))
		for i := range values {
			targets[i] = &values[i]
		}
		if err := cursor.Scan(targets...); err != nil {
			return nil, translate(err)
		}
		if text, isText := values[0].(string); !isText || text != "ok" {
			found = append(found, strings.TrimSpace(fmt.Sprintln(values...)))
		}
	}
	return found, translate(cursor.Err())
}
