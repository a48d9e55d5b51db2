package schema

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
)

// editTable is editDistance as the books have it.
func editTable(a, b string) int {
	rows := make([][]int, len(a)+1)
	for i := range rows {
		rows[i] = make([]int, len(b)+1)
		for j := range rows[i] {
			switch {
			case i == 0:
				rows[i][j] = j
			case j == 0:
				rows[i][j] = i
			default:
				cost := 1
				if a[i-1] == b[j-1] {
					cost = 0
				}
				rows[i][j] = min(rows[i-1][j]+1, rows[i][j-1]+1, rows[i-1][j-1]+cost)
				if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
					rows[i][j] = min(rows[i][j], rows[i-2][j-2]+1)
				}
			}
		}
	}
	return rows[len(a)][len(b)]
}

func TestEditDistance(t *testing.T) {
	const seed = 1
	random := rand.New(rand.NewPCG(seed, seed))
	word := func(n int) string {
		var b strings.Builder
		for range n {
			b.WriteByte("abc"[random.IntN(3)])
		}
		return b.String()
	}
	near := 0
	for range 20_000 {
		limit := 1 + random.IntN(suggestDistance+1)
		a := word(1 + random.IntN(suggestNameBytes))
		b := word(max(0, len(a)+random.IntN(2*limit+1)-limit))
		if random.IntN(2) == 0 { // Some that are near.
			cut := random.IntN(len(a) + 1)
			b = a[:cut] + word(random.IntN(3)) + a[min(len(a), cut+random.IntN(3)):]
			if max(len(b)-len(a), len(a)-len(b)) > limit {
				continue
			}
		}
		want, got := editTable(a, b), editDistance(a, b, limit)
		if want <= limit {
			near++
		}
		if got != want && (want <= limit || got <= limit) {
			t.Fatalf("from %q to %q within %d: %d, want %d (seed %d)", a, b, limit, got, want, seed)
		}
	}
	if near < 2000 {
		t.Errorf("only %d of the pairs were near", near)
	}
}

// No suggestion is looked for where that could take long.
func TestNearestIsBounded(t *testing.T) {
	names := make([]string, 0, suggestCandidates+1)
	for i := range suggestCandidates {
		names = append(names, fmt.Sprintf("%s%04d", strings.Repeat("a", 50), i))
	}
	misspelt := strings.Repeat("a", 50) + "00x7"
	if got := Nearest(misspelt, names); got == "" {
		t.Error("no suggestion among as many names as are looked at")
	}
	if n := testing.AllocsPerRun(10, func() { Nearest(misspelt, names) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
	if got := Nearest(misspelt, append(names, "b")); got != "" {
		t.Errorf("suggested %q among more", got)
	}
}
