package memory

import (
	"iter"
	"math"
	"strings"
)

// key is what rows are ordered by, in every table and index: by a, then n, then b. An index that holds rows in groups has the
// group in a.
type key struct {
	a string
	n int64
	b string
}

func (k key) compare(o key) int {
	switch {
	case k.a != o.a:
		return strings.Compare(k.a, o.a)
	case k.n < o.n:
		return -1
	case k.n > o.n:
		return 1
	}
	return strings.Compare(k.b, o.b)
}

// after is the first key that can follow k.
func (k key) after() key { return key{k.a, k.n, k.b + "\x00"} }

// span is a range of keys: from and what follows, and below to.
type span struct {
	from, to key
	endless  bool // there is no to
}

var everything = span{from: key{n: math.MinInt64}, endless: true}

// group is the span of all keys that begin with a.
func group(a string) span {
	return span{from: key{a: a, n: math.MinInt64}, to: key{a: a + "\x00", n: math.MinInt64}}
}

func (s *span) begun(k key) bool { return k.compare(s.from) >= 0 }
func (s *span) over(k key) bool  { return !s.endless && k.compare(s.to) >= 0 }

// edit is one transaction's licence to change trees. Nodes that it made itself it changes in place; all others it copies
// first, so whoever looks at an earlier tree sees no change.
type edit struct{ seed uint64 }

// random is the next of a fixed sequence (splitmix64), so that equal histories make equal trees.
func (e *edit) random() uint64 {
	e.seed += 0x9e3779b97f4a7c15
	z := e.seed
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}

// tree is an ordered map that can be copied by assignment: a treap whose changes copy the path to what they change.
type tree[V any] struct{ root *branch[V] }

type branch[V any] struct {
	key         key
	row         *V
	left, right *branch[V]
	rank        uint64 // above those of both sides; at random, which keeps the tree shallow
	owner       *edit
}

func (b *branch[V]) own(e *edit) *branch[V] {
	if b.owner == e {
		return b
	}
	mine := *b
	mine.owner = e
	return &mine
}

// get answers nil when there is no such key.
func (t tree[V]) get(k key) *V {
	for b := t.root; b != nil; {
		switch c := k.compare(b.key); {
		case c < 0:
			b = b.left
		case c > 0:
			b = b.right
		default:
			return b.row
		}
	}
	return nil
}

func (t *tree[V]) put(e *edit, k key, row *V) { t.root = put(t.root, e, k, row) }

func put[V any](b *branch[V], e *edit, k key, row *V) *branch[V] {
	if b == nil {
		return &branch[V]{key: k, row: row, rank: e.random(), owner: e}
	}
	b = b.own(e)
	switch c := k.compare(b.key); {
	case c < 0:
		b.left = put(b.left, e, k, row)
		if up := b.left; up.rank > b.rank {
			b.left, up.right = up.right, b
			return up
		}
	case c > 0:
		b.right = put(b.right, e, k, row)
		if up := b.right; up.rank > b.rank {
			b.right, up.left = up.left, b
			return up
		}
	default:
		b.row = row
	}
	return b
}

// drop removes a key, which must be there.
func (t *tree[V]) drop(e *edit, k key) { t.root = drop(t.root, e, k) }

func drop[V any](b *branch[V], e *edit, k key) *branch[V] {
	c := k.compare(b.key)
	if c == 0 {
		return merge(b.left, b.right, e)
	}
	b = b.own(e)
	if c < 0 {
		b.left = drop(b.left, e, k)
	} else {
		b.right = drop(b.right, e, k)
	}
	return b
}

func merge[V any](left, right *branch[V], e *edit) *branch[V] {
	switch {
	case left == nil:
		return right
	case right == nil:
		return left
	case left.rank > right.rank:
		left = left.own(e)
		left.right = merge(left.right, right, e)
		return left
	}
	right = right.own(e)
	right.left = merge(left, right.left, e)
	return right
}

// up walks through the rows of a span in their order.
func (t tree[V]) up(s span) iter.Seq[*V] {
	return func(yield func(*V) bool) { t.root.up(&s, yield) }
}

func (b *branch[V]) up(s *span, yield func(*V) bool) bool {
	if b == nil {
		return true
	}
	begun, over := s.begun(b.key), s.over(b.key)
	if begun && !b.left.up(s, yield) {
		return false
	}
	if begun && !over && !yield(b.row) {
		return false
	}
	return over || b.right.up(s, yield)
}

// down walks through them the other way round.
func (t tree[V]) down(s span) iter.Seq[*V] {
	return func(yield func(*V) bool) { t.root.down(&s, yield) }
}

func (b *branch[V]) down(s *span, yield func(*V) bool) bool {
	if b == nil {
		return true
	}
	begun, over := s.begun(b.key), s.over(b.key)
	if !over && !b.right.down(s, yield) {
		return false
	}
	if begun && !over && !yield(b.row) {
		return false
	}
	return !begun || b.left.down(s, yield)
}
