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

// filter demands labels. The list walks along the first one; all others are looked up for each row found.
func (l labelled) filter(list *listing, labels map[string]string) {
	for i, key := range slices.Sorted(maps.Keys(labels)) {
		if i == 0 {
			list.from = l.labels + " CROSS JOIN " + l.table
			list.order = []string{"of_created_at", "of_id"}
			list.and("key = ? AND value = ? AND id = of_id", key, labels[key])
			continue
		}
		list.and("EXISTS (SELECT 1 FROM "+l.labels+" AS other WHERE other.of_id = "+l.table+".id AND other.key = ? AND other.value = ?)", key, labels[key])
	}
}
