package rows

import (
	"slices"
	"strings"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/store"
)

const (
	defaultLimit = 100
	maxLimit     = 1000
)

// listing is a query for one page of a table, put together condition by condition.
type listing struct {
	table, columns string
	from           string   // what to select from, when that is more than the table
	order          []string // columns; the last one is unique
	ascending      bool
	where          []condition
	either         []condition // one of these must hold
	rare           bool        // few rows match: find them and sort them, rather than walk the whole list in its order
}

type condition struct {
	sql  string
	args []any
}

// newest is a list of a table in the usual order.
func newest(table, columns string) *listing {
	return &listing{table: table, columns: columns, order: []string{"created_at", "id"}}
}

func (l *listing) and(sql string, args ...any) {
	l.where = append(l.where, condition{sql, args})
}

// andText demands that a column have a value, if one is given. That the value is not empty is said again in SQL, because
// indexes that leave empty values out are used only then.
func (l *listing) andText(column, value string) {
	if value != "" {
		l.and(column+" = ? AND "+column+" <> ''", value)
	}
}

// andHidden is andText for a column whose indexes are not to be gone by.
func (l *listing) andHidden(column, value string) {
	if value != "" {
		l.and(column+" || '' = ?", value)
	}
}

// andOneOf demands that a column have one of some values, if any are given.
func (l *listing) andOneOf(column string, values []any) {
	if len(values) > 0 {
		l.and(column+" IN ("+parameters(len(values))+")", values...)
	}
}

// eitherOf is andOneOf for a column whose index is in the order of the list for each single value.
func (l *listing) eitherOf(column string, values []any) {
	slices.SortFunc(values, func(a, b any) int { return strings.Compare(a.(string), b.(string)) })
	values = slices.Compact(values)
	if len(values) == 1 {
		l.and(column+" = ?", values...)
		return
	}
	for _, value := range values {
		l.either = append(l.either, condition{column + " = ?", []any{value}})
	}
}

// source renders FROM and WHERE, with extra conditions.
func (l *listing) source(extra ...condition) (string, []any) {
	from := l.table
	if l.from != "" {
		from = l.from
	}
	return whereOf(" FROM "+from, slices.Concat(l.where, extra))
}

func whereOf(from string, all []condition) (string, []any) {
	var args []any
	for i, c := range all {
		word := " AND "
		if i == 0 {
			word = " WHERE "
		}
		from += word + c.sql
		args = append(args, c.args...)
	}
	return from, args
}

// anyOf is the alternatives as one condition.
func (l *listing) anyOf() []condition {
	if len(l.either) == 0 {
		return nil
	}
	return []condition{anyOf(l.either)}
}

func anyOf(either []condition) (all condition) {
	for i, c := range either {
		if i > 0 {
			all.sql += " OR "
		}
		all.sql += c.sql
		all.args = append(all.args, c.args...)
	}
	all.sql = "(" + all.sql + ")"
	return all
}

// orderBy renders the order. Unless it is to be gone by, it is hidden from the database, which else might walk along it through
// rows that do not match.
func (l *listing) orderBy(hidden bool) string {
	direction := " DESC"
	if l.ascending {
		direction = ""
	}
	first := l.order[0]
	if hidden {
		first += " + 0"
	}
	return " ORDER BY " + strings.Join(append([]string{first}, l.order[1:]...), direction+", ") + direction
}

// query renders the list after a position, limit rows of it.
func (l *listing) query(after []any, limit int) (string, []any) {
	if len(after) > 0 {
		sign := "<"
		if l.ascending {
			sign = ">"
		}
		l.and("("+strings.Join(l.order, ", ")+") "+sign+" ("+parameters(len(after))+")", after...)
	}
	if len(l.either) == 0 || l.from != "" || l.rare {
		source, args := l.source(l.anyOf()...)
		return "SELECT " + l.columns + source + l.orderBy(l.rare) + " LIMIT ?", append(args, limit)
	}
	// Each alternative has an index in the order of the list: take a page of each, and the page out of those.
	var parts []string
	var args []any
	for _, c := range l.either {
		source, more := l.source(c)
		parts = append(parts, "SELECT id FROM (SELECT id"+source+l.orderBy(false)+" LIMIT ?) AS part")
		args = append(append(args, more...), limit)
	}
	return "SELECT " + l.columns + " FROM " + l.table + " WHERE id IN (" + strings.Join(parts, " UNION ") + ")" +
		l.orderBy(true) + " LIMIT ?", append(args, limit)
}

// narrowing is one of several conditions of a list that an index could be gone by.
type narrowing struct {
	name string
	from string
	condition
}

// probeAtMost is up to how many matches the ways to a list are told apart. So many are counted, or walked through, quickly.
const probeAtMost = 2000

// narrowest answers the name of the condition that leaves the fewest rows; "" of none. A database would not know, and might walk along
// what nearly all rows have in common in search of those few that have something else, too.
func (tx *Tx) narrowest(all []narrowing) (name string, err error) {
	if len(all) == 0 {
		return "", nil
	}
	name = all[0].name
	if len(all) == 1 {
		return name, nil
	}
	least := probeAtMost
	for _, way := range all {
		var n int
		probe := "SELECT COUNT(*) FROM (SELECT 1 FROM " + way.from + " WHERE " + way.sql + " LIMIT ?) AS counted"
		if _, err := tx.scalar(&n, probe, append(slices.Clone(way.args), least)...); err != nil {
			return "", err
		}
		if n < least {
			name, least = way.name, n
		}
		if least == 0 {
			break
		}
	}
	return name, nil
}

// selectPage runs l for one page. It asks for one row more than the page holds, so that the end of the list is known without a
// second query. key answers what the list is ordered by, of a row.
func selectPage[T any](tx *Tx, l *listing, p store.Paging, fields func(*T) []any, key func(*T) []any) ([]*T, store.Page, error) {
	limit := p.Limit
	switch {
	case limit == 0:
		limit = defaultLimit
	case limit < 0 || limit > maxLimit:
		return nil, store.Page{}, spore.Invalidf("limit", "%d is out of range", limit).WithHint("between 1 and %d", maxLimit)
	}
	var after position
	if p.After != "" {
		var err error
		if after, err = parseToken(l.table, key(new(T)), p.After); err != nil {
			return nil, store.Page{}, err
		}
	}
	query, args := l.query(after.at, limit+1)
	list, err := selectRows(tx, fields, query, args...)
	if err != nil || len(list) <= limit {
		return list, store.Page{}, err
	}
	list = list[:limit]
	return list, store.Page{Next: position{l.table, key(list[limit-1])}.token()}, nil
}

// count counts the rows of a list, all pages together, up to limit.
func (l *listing) count(tx *Tx, limit int) (int, error) {
	if limit <= 0 {
		return 0, nil
	}
	source, args := l.source(l.anyOf()...)
	var n int
	_, err := tx.scalar(&n, "SELECT COUNT(*) FROM (SELECT 1"+source+" LIMIT ?) AS counted", append(args, limit)...)
	return n, err
}
