package rows

import (
	"encoding/base64"
	"strconv"
	"strings"
	"time"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/store"
)

const (
	defaultLimit = 100
	maxLimit     = 1000
)

// position is the last row of a page: the next one begins right after it. Rows are ordered by creation time and, where
// that is equal, by id, so a position stays right while rows come and go.
type position struct {
	list    string // which list it belongs to
	created int64
	id      string
}

// token renders p for clients.
func (p position) token() string {
	return base64.RawURLEncoding.EncodeToString([]byte("1." + p.list + "." + strconv.FormatInt(p.created, 36) + "." + p.id))
}

func parseToken(list, token string) (position, error) {
	const longest = 200
	malformed := spore.Invalidf("pageToken", "it is not a token of this list").
		WithHint("pass on the nextPageToken of the page before, unchanged, or leave it out to begin anew")
	if len(token) > longest {
		return position{}, malformed
	}
	text, err := base64.RawURLEncoding.Strict().DecodeString(token)
	if err != nil {
		return position{}, malformed
	}
	parts := strings.Split(string(text), ".")
	if len(parts) != 4 || parts[0] != "1" || parts[1] != list || !isID(parts[3]) {
		return position{}, malformed
	}
	created, err := strconv.ParseInt(parts[2], 36, 64)
	p := position{list: list, created: created, id: parts[3]}
	if err != nil || p.token() != token { // there is one way to write a position; parsers accept more
		return position{}, malformed
	}
	return p, nil
}

func isID(s string) bool {
	return s != "" && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789-") == ""
}

// listing is a query for one page, newest first, put together condition by condition.
type listing struct {
	table, columns string
	where          []string
	args           []any
	rare           bool // few rows match: find them and sort them, rather than walk the whole list in its order
}

func (l *listing) and(condition string, args ...any) {
	l.where = append(l.where, condition)
	l.args = append(l.args, args...)
}

// andText demands that a column have a value, if one is given. That the value is not empty is said again in SQL, because
// indexes that leave empty values out are used only then.
func (l *listing) andText(column, value string) {
	if value != "" {
		l.and(column+" = ? AND "+column+" <> ''", value)
	}
}

func (l *listing) andOneOf(column string, values []any) {
	if len(values) > 0 {
		l.and(column+" IN ("+parameters(len(values))+")", values...)
	}
}

func (l *listing) andLabels(d Dialect, labels map[string]string) {
	for key, value := range labels {
		l.and(d.HasLabel, key, value)
	}
}

// selectPage runs l for one page. It asks for one row more than the page holds, so that the end of the list is known without a
// second query.
func selectPage[T any](tx *Tx, l *listing, p store.Paging, fields func(*T) []any, key func(*T) (time.Time, string)) ([]*T, store.Page, error) {
	limit := p.Limit
	switch {
	case limit == 0:
		limit = defaultLimit
	case limit < 0 || limit > maxLimit:
		return nil, store.Page{}, spore.Invalidf("limit", "%d is out of range", limit).WithHint("between 1 and %d", maxLimit)
	}
	if p.After != "" {
		after, err := parseToken(l.table, p.After)
		if err != nil {
			return nil, store.Page{}, err
		}
		l.and("(created_at, id) < (?, ?)", after.created, after.id)
	}
	query := "SELECT " + l.columns + " FROM " + l.table
	if len(l.where) > 0 {
		query += " WHERE " + strings.Join(l.where, " AND ")
	}
	order := "created_at"
	if l.rare {
		order = "created_at + 0" // no index has that, so none tempts the database to go by it
	}
	query += " ORDER BY " + order + " DESC, id DESC LIMIT ?"
	list, err := selectRows(tx, fields, query, append(l.args, limit+1)...)
	if err != nil || len(list) <= limit {
		return list, store.Page{}, err
	}
	list = list[:limit]
	created, id := key(list[limit-1])
	nanos, err := asTime(&created).Value()
	if err != nil {
		return nil, store.Page{}, err
	}
	return list, store.Page{Next: position{l.table, nanos.(int64), id}.token()}, nil
}
