package main

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestHistogramBuckets holds that buckets are without gaps, in order, and no
// wider than they may be.
func TestHistogramBuckets(t *testing.T) {
	least := time.Duration(0)
	for b := range histogramBuckets {
		most := bucketMax(b)
		if bucket(least) != b || bucket(most) != b {
			t.Fatalf("bucket %d should hold %d to %d; they are in %d and %d", b, least, most, bucket(least), bucket(most))
		}
		if width := most - least; width*64 > max(least, 1) && least >= 64 {
			t.Fatalf("bucket %d from %d is %d wide", b, least, width)
		}
		least = most + 1
	}
	if least != 1<<histogramOctaves {
		t.Errorf("the last bucket ends before %d; it should before %d", least, 1<<histogramOctaves)
	}
	for _, d := range []time.Duration{-1, 1 << 62} {
		if b := bucket(d); b != 0 && b != histogramBuckets-1 {
			t.Errorf("%d is in bucket %d", d, b)
		}
	}
}

// TestHistogramQuantile compares quantiles with those of the sorted samples.
func TestHistogramQuantile(t *testing.T) {
	var empty histogram
	if got := empty.quantile(0.5); got != 0 {
		t.Errorf("the median of nothing is %v", got)
	}
	for seed := range uint64(20) {
		r := rand.New(rand.NewPCG(seed, 0))
		var all, other histogram
		samples := make([]time.Duration, 1+r.IntN(2000))
		for i := range samples {
			samples[i] = time.Duration(1) << r.IntN(34)
			samples[i] += time.Duration(r.Int64N(int64(samples[i])))
			if i%3 == 0 {
				other.record(samples[i])
			} else {
				all.record(samples[i])
			}
		}
		all.add(&other)
		slices.Sort(samples)
		for _, q := range []float64{0.0001, 0.5, 0.95, 0.99, 1} {
			rank := int(q*float64(len(samples))+0.999999) - 1
			exact, got := samples[max(rank, 0)], all.quantile(q)
			if got < exact || got > exact+exact/64 {
				t.Errorf("seed %d: quantile %g of %d samples is %v; exactly it is %v", seed, q, len(samples), got, exact)
			}
		}
	}
}

func TestSpread(t *testing.T) {
	for _, test := range []struct {
		rounds []float64
		want   spread
	}{
		{nil, spread{}},
		{[]float64{7}, spread{7, 7, 7}},
		{[]float64{3, 1, 2}, spread{2, 1, 3}},
		{[]float64{4, 1, 2, 9}, spread{3, 1, 9}},
	} {
		if got := spreadOf(test.rounds); got != test.want {
			t.Errorf("the spread of %v is %+v; want %+v", test.rounds, got, test.want)
		}
	}
}

// TestRatios holds that ratios are taken within rounds, not of medians.
func TestRatios(t *testing.T) {
	of := func(d time.Duration) *slice {
		s := &slice{elapsed: time.Second}
		s.latency.record(d)
		return s
	}
	rounds := []round{{echo: of(10), pemba: of(20)}, {echo: of(20), pemba: of(60)}, {echo: of(5), pemba: of(50)}}
	for _, m := range measuresOf(&workload{kind: check}, rounds) {
		if m.Measure != measureMedian {
			continue
		}
		if want := (spread{3, 2, 10}); m.Ratio == nil || *m.Ratio != want {
			t.Errorf("the ratio is %+v; want %+v", m.Ratio, want)
		}
		return
	}
	t.Error("there is no median")
}

func TestNumber(t *testing.T) {
	for _, test := range []struct {
		f    float64
		want string
	}{{0, "0.00"}, {0.0034, "0.0034"}, {0.0994, "0.099"}, {0.0996, "0.10"}, {1.234, "1.23"}, {9.996, "10.0"}, {99.96, "100"}, {1234, "1234"}, {12345, "12.3k"}, {999_499, "999k"}, {1.5e6, "1.50M"}} {
		if got := number(test.f); got != test.want {
			t.Errorf("%v is written %s; want %s", test.f, got, test.want)
		}
	}
}

// TestLessMemory holds that a server which has less memory resident than the empty one
// is told as such, and not as a negative size.
func TestLessMemory(t *testing.T) {
	var table strings.Builder
	r := &report{table: &table}
	if err := r.block("head", "name", nil, []measure{once("resident after restart", "bytes/tuple", -1000)}); err != nil {
		t.Fatal(err)
	}
	if got := table.String(); strings.Contains(got, "-1") || !strings.Contains(got, " 0.00 bytes/tuple (less than the empty server has)") {
		t.Errorf("it is told as %q", got)
	}
}
