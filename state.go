package spore

import "slices"

// Transitions is a state machine as one table: for each state, the states it may go to. A state may always "go" to
// itself, so that a retried write is harmless.
type Transitions[S ~string] map[S][]S

// Allows says whether the machine may go from one state to another. An unknown state goes nowhere.
func (t Transitions[S]) Allows(from, to S) bool {
	next, known := t[from]
	return known && (from == to || slices.Contains(next, to))
}

// Check is Allows as an error: CodeConflict that names what was to change and why it cannot.
func (t Transitions[S]) Check(what string, from, to S) error {
	if t.Allows(from, to) {
		return nil
	}
	return Errorf(CodeConflict, "%s is %s and cannot become %s", what, from, to)
}

// Final says whether nothing follows on s.
func (t Transitions[S]) Final(s S) bool { return len(t[s]) == 0 }
