package sqlite

import (
	"bytes"
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"reflect"

	"github.com/sporevm/spore/internal/store/rows"
)

// direct runs statements on the connection of a transaction without the detours of database/sql: one writer does all the writing,
// so what a statement costs bounds how many there can be.
type direct struct{ conn *sql.Conn }

// with runs use with the compiled form of a query and its parameters.
func (d direct) with(ctx context.Context, query string, args []any, use func(driver.Stmt, []driver.NamedValue) error) error {
	return d.conn.Raw(func(conn any) error {
		known := conn.(*keepingConn).known
		values, err := known.parameters(args)
		if err != nil {
			return err
		}
		statement, done, err := known.of(ctx, query)
		if err != nil {
			return err
		}
		return errors.Join(use(statement, values), done())
	})
}

func (d direct) exec(ctx context.Context, query string, args []any) (result driver.Result, err error) {
	err = d.with(ctx, query, args, func(statement driver.Stmt, values []driver.NamedValue) (err error) {
		result, err = statement.(driver.StmtExecContext).ExecContext(ctx, values)
		return err
	})
	return result, err
}

// query reads all rows at once: the connection is not left in the middle of a statement.
func (d direct) query(ctx context.Context, query string, args []any) (*gathered, error) {
	all := &gathered{at: -1}
	return all, d.with(ctx, query, args, func(statement driver.Stmt, values []driver.NamedValue) error {
		cursor, err := statement.(driver.StmtQueryContext).QueryContext(ctx, values)
		if err != nil {
			return err
		}
		width := len(cursor.Columns())
		for {
			row := make([]driver.Value, width)
			if err := cursor.Next(row); err != nil {
				if err == io.EOF {
					err = nil
				}
				return errors.Join(err, cursor.Close())
			}
			all.rows = append(all.rows, row)
		}
	})
}

// gathered is a cursor over rows that were read already.
type gathered struct {
	rows [][]driver.Value
	at   int
}

var _ rows.Cursor = (*gathered)(nil)

func (g *gathered) Next() bool {
	g.at++
	return g.at < len(g.rows)
}

func (g *gathered) Scan(dest ...any) error {
	row := g.rows[g.at]
	if len(dest) != len(row) {
		return fmt.Errorf("%d columns were asked for, and %d found", len(dest), len(row))
	}
	for i, value := range row {
		if err := assign(dest[i], value); err != nil {
			return fmt.Errorf("column %d: %w", i, err)
		}
	}
	return nil
}

func (g *gathered) Err() error   { return nil }
func (g *gathered) Close() error { return nil }

// parameters gives args the form that drivers know. It is good until the next call.
func (s *statements) parameters(args []any) ([]driver.NamedValue, error) {
	s.values = s.values[:0]
	for i, arg := range args {
		value, err := parameterOf(arg)
		if err != nil {
			return nil, fmt.Errorf("parameter %d: %w", i+1, err)
		}
		s.values = append(s.values, driver.NamedValue{Ordinal: i + 1, Value: value})
	}
	return s.values, nil
}

func parameterOf(arg any) (driver.Value, error) {
	switch a := arg.(type) {
	case string:
		return a, nil
	case int64:
		return a, nil
	case *string:
		return *a, nil
	case *int:
		return int64(*a), nil
	case driver.Valuer:
		return a.Value()
	}
	return driver.DefaultParameterConverter.ConvertValue(arg)
}

// assign puts a value that the database answered where it belongs.
func assign(dest any, value driver.Value) error {
	if scanner, ok := dest.(sql.Scanner); ok {
		return scanner.Scan(value)
	}
	if document, ok := dest.(*[]byte); ok && (value == nil || isBytes(value)) {
		content, _ := value.([]byte)
		*document = bytes.Clone(content) // the row may be read again
		return nil
	}
	target := reflect.ValueOf(dest).Elem()
	switch v := value.(type) {
	case string:
		if target.Kind() == reflect.String {
			target.SetString(v)
			return nil
		}
	case int64:
		if target.CanInt() && !target.OverflowInt(v) {
			target.SetInt(v)
			return nil
		}
	}
	return fmt.Errorf("%T is kept as %T", dest, value)
}

func isBytes(value driver.Value) bool { _, is := value.([]byte); return is }
