package resident

import (
	"iter"
	"sync/atomic"
)

// A directory finds the segment of a hash by the hash's leading bits: extendible
// hashing. A table grows by one segment at a time becoming two, never all at once.
type directory[S any] struct {
	// shift is 64 less the number of leading bits.
	shift    uint
	segments []atomic.Pointer[S]
}

func newDirectory[S any](first *S) *directory[S] {
	d := &directory[S]{shift: 64, segments: make([]atomic.Pointer[S], 1)}
	d.segments[0].Store(first)
	return d
}

func (d *directory[S]) segment(hash uint64) *S { return d.segments[hash>>d.shift].Load() }

// replace puts a segment, or two halves, in place of the one that the hash belongs to,
// which has so many bits of its own. It returns the directory to use from then on; who
// uses the old one finds the old segment, or the new ones.
func (d *directory[S]) replace(hash uint64, depth uint, parts ...*S) *directory[S] {
	if len(parts) > 1 && depth == 64-d.shift {
		// Each place becomes two.
		wide := &directory[S]{shift: d.shift - 1, segments: make([]atomic.Pointer[S], 2*len(d.segments))}
		for i := range wide.segments {
			wide.segments[i].Store(d.segments[i/2].Load())
		}
		d = wide
	}
	// The places of the segment have its bits in front.
	span := 1 << (64 - d.shift - depth)
	first := int(hash>>d.shift) &^ (span - 1)
	for i := range span {
		d.segments[first+i].Store(parts[i*len(parts)/span])
	}
	return d
}

// all goes through the segments, each once.
func (d *directory[S]) all() iter.Seq[*S] {
	return func(yield func(*S) bool) {
		var last *S
		for i := range d.segments {
			if s := d.segments[i].Load(); s != last {
				last = s
				if !yield(s) {
					return
				}
			}
		}
	}
}
