package memory

import (
	"encoding/base64"
	"encoding/json"
	"iter"
	"slices"

	"github.com/sporevm/spore"
	"github.com/sporevm/spore/internal/store"
)

const (
	defaultLimit = 100
	maxLimit     = 1000
)

// position is the last row of a page: the next page begins right beyond it.
type position struct {
	list string // which list it belongs to
	at   key    // within the order of the list
}

// token renders p for clients.
func (p position) token() string {
	text, err := json.Marshal([]any{p.list, p.at.a, p.at.n, p.at.b})
	if err != nil {
		panic(err) // strings and a number
	}
	return base64.RawURLEncoding.EncodeToString(text)
}

func parseToken(list, token string) (position, error) {
	const longest = 2000
	malformed := spore.Invalidf("pageToken", "it is not a token of this list").
		WithHint("pass on the nextPageToken of the page before, unchanged, or leave it out to begin anew")
	if len(token) > longest {
		return position{}, malformed
	}
	text, err := base64.RawURLEncoding.Strict().DecodeString(token)
	if err != nil {
		return position{}, malformed
	}
	p := position{}
	fields := []any{&p.list, &p.at.a, &p.at.n, &p.at.b}
	if json.Unmarshal(text, &fields) != nil || p.list != list || p.token() != token { // there is one way to write a position
		return position{}, malformed
	}
	return p, nil
}

// listing is one list: which rows, in which order.
type listing[V any] struct {
	list   string
	rows   tree[V]
	span   span
	newest bool // from the end of the span to its beginning
	// at is where a row is in the order of the list, whichever index rows is.
	at func(*V) key
	// place is where a position of the list is among rows; nil when that is the same.
	place   func(key) key
	matches func(*V) bool
}

// inGroup says that a list of the newest is read from an index, whose groups are the part of the list that has one value.
func (l *listing[V]) inGroup(rows tree[V], a string) {
	l.rows, l.span = rows, group(a)
	l.place = func(k key) key { k.a = a; return k }
}

func (l *listing[V]) walk() iter.Seq[*V] {
	return func(yield func(*V) bool) {
		seq := l.rows.up(l.span)
		if l.newest {
			seq = l.rows.down(l.span)
		}
		for row := range seq {
			if l.matches(row) && !yield(row) {
				return
			}
		}
	}
}

// page reads one page. It looks for one row more than the page holds, to know whether the list ends with it.
func (l *listing[V]) page(p store.Paging, out func(*V) *V) ([]*V, store.Page, error) {
	limit, err := limitOf(p)
	if err != nil {
		return nil, store.Page{}, err
	}
	if p.After != "" {
		after, err := parseToken(l.list, p.After)
		if err != nil {
			return nil, store.Page{}, err
		}
		k := after.at
		if l.place != nil {
			k = l.place(k)
		}
		if l.newest {
			if !l.span.over(k) {
				l.span.to, l.span.endless = k, false
			}
		} else if k = k.after(); l.span.begun(k) {
			l.span.from = k
		}
	}
	var list []*V
	for row := range l.walk() {
		if len(list) == limit {
			return list, store.Page{Next: position{l.list, l.at(list[limit-1])}.token()}, nil
		}
		list = append(list, out(row))
	}
	return list, store.Page{}, nil
}

// count counts the rows of all pages, up to limit.
func (l *listing[V]) count(limit int) int {
	n := 0
	for range l.walk() {
		if n >= limit {
			break
		}
		n++
	}
	return n
}

func limitOf(p store.Paging) (int, error) {
	switch {
	case p.Limit == 0:
		return defaultLimit, nil
	case p.Limit < 0 || p.Limit > maxLimit:
		return 0, spore.Invalidf("limit", "%d is out of range", p.Limit).WithHint("between 1 and %d", maxLimit)
	}
	return p.Limit, nil
}

func hasLabels(have, want map[string]string) bool {
	for k, v := range want {
		if got, ok := have[k]; !ok || got != v {
			return false
		}
	}
	return true
}

// fits says whether a value is the one wanted, if one is.
func fits[S ~string](want, have S) bool { return want == "" || want == have }

// oneOf says whether a value is among those wanted, if any are.
func oneOf[S ~string](want []S, have S) bool { return len(want) == 0 || slices.Contains(want, have) }

// known says whether a value is one of those that there are.
func known[S ~string](s S, all ...S) bool { return slices.Contains(all, s) }
