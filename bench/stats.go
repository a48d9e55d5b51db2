package main

import (
	"math"
	"math/bits"
	"slices"
	"time"
)

// A histogram counts durations in buckets whose width is at most 1/64 of what
// they hold, so that a quantile is never told less than it is nor more than 1.6%
// too much. It takes 18 KiB whatever it counts. The zero value is empty; it is
// not safe for concurrent use, so every caller has one and they are added up.
type histogram struct {
	buckets [histogramBuckets]uint64
	// Invariant: count is the sum of buckets.
	count uint64
}

const (
	// histogramStep is the binary logarithm of the buckets in an octave.
	histogramStep    = 6
	histogramOctaves = 36 // up to 2^36 ns, which is 68 s; longer counts as that
	histogramBuckets = (histogramOctaves - histogramStep + 1) << histogramStep
)

// bucket returns the bucket of a duration.
func bucket(d time.Duration) int {
	n := uint64(max(d, 0))
	if n < 1<<histogramStep {
		return int(n)
	}
	shift := bits.Len64(n) - 1 - histogramStep
	return min(shift<<histogramStep+int(n>>shift), histogramBuckets-1)
}

// bucketMax returns the longest duration that is counted in a bucket.
func bucketMax(b int) time.Duration {
	if b < 1<<histogramStep {
		return time.Duration(b)
	}
	shift := b>>histogramStep - 1
	mantissa := uint64(b - shift<<histogramStep)
	return time.Duration((mantissa+1)<<shift - 1)
}

// record counts a duration.
func (h *histogram) record(d time.Duration) {
	h.buckets[bucket(d)]++
	h.count++
}

// add counts all that other has counted.
func (h *histogram) add(other *histogram) {
	for b, n := range other.buckets {
		h.buckets[b] += n
	}
	h.count += other.count
}

// quantile returns a duration that at least the share q of the counted ones,
// 0 < q <= 1, do not exceed; 0 when nothing is counted.
func (h *histogram) quantile(q float64) time.Duration {
	if h.count == 0 {
		return 0
	}
	rank := max(uint64(math.Ceil(q*float64(h.count))), 1)
	for b, n := range h.buckets {
		if n >= rank {
			return bucketMax(b)
		}
		rank -= n
	}
	return bucketMax(histogramBuckets - 1)
}

// A spread is the median of some rounds, and their extremes. Without rounds it
// is zero.
//
// Invariant: Min <= Median <= Max.
type spread struct {
	Median float64 `json:"median"`
	Min    float64 `json:"min"`
	Max    float64 `json:"max"`
}

// spreadOf sums up what was measured in each round. Of an even number of rounds
// the median is the mean of the two in the middle.
func spreadOf(rounds []float64) spread {
	if len(rounds) == 0 {
		return spread{}
	}
	sorted := slices.Sorted(slices.Values(rounds))
	middle := len(sorted) / 2
	median := sorted[middle]
	if len(sorted)%2 == 0 {
		median = (sorted[middle-1] + sorted[middle]) / 2
	}
	return spread{Median: median, Min: sorted[0], Max: sorted[len(sorted)-1]}
}
