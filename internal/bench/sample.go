package bench

import (
	"math"
	"slices"
	"time"
)

// Series is what one way of doing a thing took, run by run, in the order in which it was measured.
type Series struct {
	Name   string    `json:"name"`
	Unit   string    `json:"unit"`
	Values []float64 `json:"values"`
	// Failures are the runs that came to nothing, each with its reason. They are not among the values.
	Failures []string `json:"failures,omitempty"`

	N   int     `json:"n"`
	P50 float64 `json:"p50"`
	P90 float64 `json:"p90"`
	P99 float64 `json:"p99"`
	Max float64 `json:"max"`

	// Ratio is the median over that of the floor that the series is held against; 0 for none.
	Ratio float64 `json:"ratio,omitempty"`
	// Every is set when there were too many values to keep: each Every-th is listed. Counted are all.
	Every int `json:"every,omitempty"`
}

// Units of series.
const (
	milliseconds = "ms"
	bytesUnit    = "bytes"
	kibibytes    = "KiB"
	times        = "x"
	perSecond    = "/s"
)

// add keeps one measured value.
func (s *Series) add(v float64) { s.Values = append(s.Values, v) }

// took keeps a length of time.
func (s *Series) took(d time.Duration) { s.add(float64(d) / float64(time.Millisecond)) }

// failed keeps the reason of a run that came to nothing.
func (s *Series) failed(err error) { s.Failures = append(s.Failures, err.Error()) }

// settle computes the percentiles. It is done once all values are there.
func (s *Series) settle() {
	s.N = len(s.Values)
	s.P50, s.P90, s.P99, s.Max = percentile(s.Values, 50), percentile(s.Values, 90), percentile(s.Values, 99), percentile(s.Values, 100)
}

// thin leaves only some of very many values, evenly. It is done after settle, which counts all.
func (s *Series) thin() {
	const most = 1000
	if len(s.Values) <= most {
		return
	}
	s.Every = (len(s.Values) + most - 1) / most
	var some []float64
	for i := 0; i < len(s.Values); i += s.Every {
		some = append(some, s.Values[i])
	}
	s.Values = some
}

// against holds a series against its floor. Both are settled.
func (s *Series) against(floor *Series) {
	if floor.P50 != 0 {
		s.Ratio = s.P50 / floor.P50
	}
}

// percentile answers the smallest value that at least p percent of the values do not exceed: always one that was
// measured, never one between two. Of no values it is 0.
func percentile(values []float64, p float64) float64 {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	rank := int(math.Ceil(p / 100 * float64(len(sorted))))
	return sorted[min(max(rank, 1), len(sorted))-1]
}
