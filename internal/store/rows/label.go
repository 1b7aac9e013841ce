package rows

import (
	"maps"
	"slices"
	"strings"
	"time"
)

// labelled is a table whose rows have labels. A row holds its labels itself, as a document to read; each of them is also a row of
// the table of labels, in the order of lists, so that those who ask for a label find it at once among any number of others.
type labelled struct{ table, labels string }

// put writes the labels of a row that is new, or whose labels or creation time may have changed (fresh: it is new).
func (l labelled) put(tx *Tx, id string, created time.Time, labels map[string]string, fresh bool) error {
	if !fresh {
		if _, err := tx.exec("DELETE FROM "+l.labels+" WHERE of_id = ?", id); err != nil {
			return err
		}
	}
	if len(labels) == 0 {
		return nil
	}
	var args []any
	for key, value := range labels {
		args = append(args, id, key, value, nanos(created))
	}
	// Keys that differ only in what no database can hold are one.
	_, err := tx.exec("INSERT INTO "+l.labels+" (of_id, key, value, of_created_at) VALUES "+
		strings.TrimSuffix(strings.Repeat("(?, ?, ?, ?), ", len(labels)), ", ")+" ON CONFLICT DO NOTHING", args...)
	return err
}

// filter demands labels. The list walks along the one with the key first, if that is not empty; all others are looked up for each
// row found.
func (l labelled) filter(list *listing, labels map[string]string, first string) {
	for _, key := range slices.Sorted(maps.Keys(labels)) {
		if key == first {
			list.from = l.labels + " CROSS JOIN " + l.table
			list.order = []string{"of_created_at", "of_id"}
			list.and("key = ? AND value = ? AND id = of_id", key, labels[key])
			continue
		}
		// Not EXISTS: PostgreSQL makes a join of that, and may read all rows that have the label first.
		list.and("(SELECT 1 FROM "+l.labels+" AS other WHERE other.of_id = "+l.table+".id AND other.key = ? AND other.value = ?) = 1", key, labels[key])
	}
}

// narrowings are the ways of each label.
func (l labelled) narrowings(labels map[string]string) []narrowing {
	var all []narrowing
	for _, key := range slices.Sorted(maps.Keys(labels)) {
		all = append(all, narrowing{"label " + key, l.labels, condition{"key = ? AND value = ?", []any{key, labels[key]}}})
	}
	return all
}

// labelOf is the key of the label that a narrowing is by, "" when it is by something else.
func labelOf(name string) string {
	key, is := strings.CutPrefix(name, "label ")
	if !is {
		return ""
	}
	return key
}
