package sqlite

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
)

// statements keeps those of one connection compiled: compiling costs as much as running. It is used by who has the connection.
type statements struct {
	conn     driver.ConnPrepareContext
	compiled map[string]driver.Stmt
	values   []driver.NamedValue // room for the parameters of one
}

// Enough for every statement of fixed text; those that filters put together are not worth more.
const maxStatements = 256

// of answers the compiled form of query, and what to do with it after use.
func (s *statements) of(ctx context.Context, query string) (_ driver.Stmt, done func() error, err error) {
	if statement, known := s.compiled[query]; known {
		return statement, keep, nil
	}
	statement, err := s.conn.PrepareContext(ctx, query)
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

func (s *statements) close() error {
	var errs []error
	for _, statement := range s.compiled {
		errs = append(errs, statement.Close())
	}
	clear(s.compiled)
	return errors.Join(errs...)
}

// connector opens connections that keep their statements compiled.
type connector struct{ driver.Connector }

func (c connector) Connect(ctx context.Context) (driver.Conn, error) {
	opened, err := c.Connector.Connect(ctx)
	if err != nil {
		return nil, err
	}
	conn, ok := opened.(driverConn)
	if !ok {
		return nil, errors.Join(fmt.Errorf("the SQLite driver's connection is a %T, which lacks methods", opened), opened.Close())
	}
	return &keepingConn{conn, &statements{conn: conn, compiled: make(map[string]driver.Stmt)}}, nil
}

// driverConn is everything that database/sql would use of a connection of the driver.
type driverConn interface {
	driver.Conn
	driver.ConnBeginTx
	driver.ConnPrepareContext
	driver.ExecerContext
	driver.QueryerContext
	driver.Pinger
	driver.SessionResetter
	driver.Validator
}

// keepingConn lets go of its statements when it is closed. That is not only at the end: the pool closes a connection that was
// interrupted, as a caller's leaving does. SQLite keeps one with statements left, its file and its memory with it, for good; and
// the driver panics when such a statement is closed later.
type keepingConn struct {
	driverConn
	known *statements
}

func (c *keepingConn) Close() error { return errors.Join(c.known.close(), c.driverConn.Close()) }
