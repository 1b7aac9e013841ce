package rows

import "strings"

// insertion renders an INSERT that does nothing when the row breaks a uniqueness rule: the caller sees from the number
// of rows that it did, and the transaction stays usable on every database.
func insertion(table, columns string) string {
	return insert(table, columns) + " ON CONFLICT DO NOTHING"
}

// upsertion renders an INSERT that writes all columns of the row that is there already.
func upsertion(table, key, columns string) string {
	return insert(table, columns) + " ON CONFLICT (" + key + ") DO UPDATE SET (" + columns + ") = (excluded." +
		strings.Join(columnsOf(columns), ", excluded.") + ")"
}

func insert(table, columns string) string {
	return "INSERT INTO " + table + " (" + columns + ") VALUES (" + parameters(len(columnsOf(columns))) + ")"
}

// assignments renders "(a, b) = (?, ?)" for columns, a list like "a, b". As a condition it says that they are so already.
func assignments(columns string) string {
	return "(" + columns + ") = (" + parameters(len(columnsOf(columns))) + ")"
}

// equal renders "a = ? AND b = ?".
func equal(columns string) string { return strings.Join(columnsOf(columns), " = ? AND ") + " = ?" }

func parameters(n int) string {
	return strings.TrimSuffix(strings.Repeat("?, ", n), ", ")
}

// columnsOf takes a list like "a, b" apart.
func columnsOf(list string) []string {
	columns := strings.Split(list, ",")
	for i := range columns {
		columns[i] = strings.TrimSpace(columns[i])
	}
	return columns
}

func asAny[S ~string](list []S) []any {
	out := make([]any, len(list))
	for i, s := range list {
		out[i] = string(s)
	}
	return out
}
