package memory

// table is rows by their primary key, and again in the orders of its indexes. Like a tree it can be copied by assignment. Rows
// in it are never changed, only replaced.
type table[V any] struct {
	rows    tree[V]
	indexes [maxIndexes]tree[V]
}

const maxIndexes = 5

// layout says how the rows of a table are ordered.
type layout[V any] struct {
	key     func(*V) key
	indexes []index[V] // at most maxIndexes
}

// index is a further order of rows; those that it answers false for are left out. Its keys must differ from row to row.
type index[V any] func(*V) (key, bool)

// put inserts a row or replaces the one with its key.
func (l *layout[V]) put(t *table[V], e *edit, row *V) {
	k := l.key(row)
	old := t.rows.get(k)
	t.rows.put(e, k, row)
	for i, at := range l.indexes {
		now, in := at(row)
		if old != nil {
			if was, had := at(old); had && (!in || was != now) {
				t.indexes[i].drop(e, was)
			}
		}
		if in {
			t.indexes[i].put(e, now, row)
		}
	}
}

// drop removes a row, which must be there.
func (l *layout[V]) drop(t *table[V], e *edit, row *V) {
	t.rows.drop(e, l.key(row))
	for i, at := range l.indexes {
		if k, in := at(row); in {
			t.indexes[i].drop(e, k)
		}
	}
}
