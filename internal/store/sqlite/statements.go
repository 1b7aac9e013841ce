package sqlite

import (
	"context"
	"database/sql/driver"
	"errors"
)

// statements keeps the writer's statements compiled: compiling costs as much as running. It is used by who has the writer's turn.
type statements struct {
	owner    any // the connection that they were compiled on
	compiled map[string]driver.Stmt
	values   []driver.NamedValue // room for the parameters of one
}

// Enough for every statement of fixed text; those that filters put together are not worth more.
const maxStatements = 256

func newStatements() *statements {
	return &statements{compiled: make(map[string]driver.Stmt)}
}

// of answers the compiled form of query on a connection of the driver, and what to do with it after use.
func (s *statements) of(ctx context.Context, conn any, query string) (_ driver.Stmt, done func() error, err error) {
	if s.owner != conn { // the pool has opened another connection; with the old one went what was compiled there
		s.owner = conn
		clear(s.compiled)
	}
	if statement, known := s.compiled[query]; known {
		return statement, keep, nil
	}
	statement, err := conn.(driver.ConnPrepareContext).PrepareContext(ctx, query)
	if err != nil {
		return nil, nil, err
	}
	if len(s.compiled) >= maxStatements {
		return statement, statement.Close, nil
	}
	s.compiled[query] = statement
	return statement, keep, nil
}

func keep() error { return nil }

// close lets go of the statements, before their connection goes.
func (s *statements) close() error {
	var errs []error
	for _, statement := range s.compiled {
		errs = append(errs, statement.Close())
	}
	clear(s.compiled)
	return errors.Join(errs...)
}
