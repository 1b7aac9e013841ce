package sqlite

import (
	"context"
	"database/sql"
)

// statements keeps the writer's statements compiled: compiling costs as much as running. It is used by who has the writer's turn.
type statements struct {
	db       *sql.DB
	compiled map[string]*sql.Stmt
	wanted   map[string]bool // seen, and to be compiled when no transaction holds the connection
}

// Enough for every statement of fixed text; those that filters put together are not worth more.
const maxStatements = 64

func newStatements(db *sql.DB) *statements {
	return &statements{db: db, compiled: make(map[string]*sql.Stmt), wanted: make(map[string]bool)}
}

// prepare compiles what was wanted since the last time. No transaction may be open.
func (s *statements) prepare(ctx context.Context) error {
	for query := range s.wanted {
		statement, err := s.db.PrepareContext(ctx, query)
		if err != nil {
			return err
		}
		s.compiled[query] = statement
		delete(s.wanted, query)
	}
	return nil
}

// of answers the compiled form of query for use in tx, nil when there is none yet.
func (s *statements) of(ctx context.Context, tx *sql.Tx, query string) *sql.Stmt {
	if statement, ok := s.compiled[query]; ok {
		return tx.StmtContext(ctx, statement)
	}
	if len(s.compiled)+len(s.wanted) < maxStatements {
		s.wanted[query] = true
	}
	return nil
}
