package frozen

import "github.com/sporevm/spore/internal/vmm"

// Lists of ranges here are ascending and do not overlap.

// appendRange adds a range at the end, joining it to the last one if they touch.
func appendRange(list []vmm.Range, r vmm.Range) []vmm.Range {
	if n := len(list); n > 0 && list[n-1].End() == r.Offset {
		list[n-1].Length += r.Length
		return list
	}
	return append(list, r)
}

func totalLength(list []vmm.Range) int64 {
	var sum int64
	for _, r := range list {
		sum += r.Length
	}
	return sum
}

// intersect is what lies in both lists.
func intersect(a, b []vmm.Range) []vmm.Range {
	var out []vmm.Range
	for len(a) > 0 && len(b) > 0 {
		start, end := max(a[0].Offset, b[0].Offset), min(a[0].End(), b[0].End())
		if start < end {
			out = appendRange(out, vmm.Range{Offset: start, Length: end - start})
		}
		if a[0].End() < b[0].End() {
			a = a[1:]
		} else {
			b = b[1:]
		}
	}
	return out
}

// subtract is what lies in a and not in b.
func subtract(a, b []vmm.Range) []vmm.Range {
	var out []vmm.Range
	for _, r := range a {
		for len(b) > 0 && b[0].End() <= r.Offset {
			b = b[1:]
		}
		rest := b
		for r.Length > 0 {
			if len(rest) == 0 || rest[0].Offset >= r.End() {
				out = appendRange(out, r)
				break
			}
			if before := rest[0].Offset - r.Offset; before > 0 {
				out = appendRange(out, vmm.Range{Offset: r.Offset, Length: before})
			}
			end := r.End()
			r.Offset = min(rest[0].End(), end)
			r.Length = end - r.Offset
			rest = rest[1:]
		}
	}
	return out
}

// union is what lies in either list.
func union(a, b []vmm.Range) []vmm.Range {
	var out []vmm.Range
	for len(a) > 0 || len(b) > 0 {
		var r vmm.Range
		if len(b) == 0 || len(a) > 0 && a[0].Offset <= b[0].Offset {
			r, a = a[0], a[1:]
		} else {
			r, b = b[0], b[1:]
		}
		if n := len(out); n > 0 && out[n-1].End() >= r.Offset {
			out[n-1].Length = max(out[n-1].End(), r.End()) - out[n-1].Offset
			continue
		}
		out = append(out, r)
	}
	return out
}

// split cuts ranges into parts of at most n bytes.
func split(list []vmm.Range, n int64) []vmm.Range {
	var out []vmm.Range
	for _, r := range list {
		for r.Length > n {
			out = append(out, vmm.Range{Offset: r.Offset, Length: n})
			r.Offset += n
			r.Length -= n
		}
		if r.Length > 0 {
			out = append(out, r)
		}
	}
	return out
}

// checkRanges says whether an engine kept its word: ascending, whole pages, inside the memory.
func checkRanges(list []vmm.Range, size int64) bool {
	last := int64(0)
	for _, r := range list {
		if r.Offset < last || r.Length <= 0 || r.Offset%pageSize != 0 || r.Length%pageSize != 0 || r.Length > size-r.Offset {
			return false
		}
		last = r.End()
	}
	return true
}
