//go:build !race

package centersim

const shuffled = false
