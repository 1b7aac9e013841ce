//go:build race

package centersim

// shuffled says that goroutines run in an order that nobody decides: the race detector has them do so.
const shuffled = true
