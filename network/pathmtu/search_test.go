package pathmtu

import (
	"errors"
	"math/rand/v2"
	"slices"
	"testing"
)

// path carries packets up to a size, and counts what it is asked.
type path struct {
	carries int
	told    bool               // a router says what it drops
	lost    func() bool        // a packet was, three times; nil: none is
	rounds  int                // of asking
	forged  func(size int) int // what somebody else says instead of a router
}

func (p *path) ask(sizes []int) (a answer, err error) {
	p.rounds++
	for _, size := range sizes {
		switch {
		case size <= p.carries && (p.lost == nil || !p.lost()):
			a.largest = max(a.largest, size)
		case size > p.carries && p.told:
			a.hint = p.carries
		}
		if p.forged != nil {
			a.hint = p.forged(size)
		}
	}
	return a, nil
}

func TestSearch(t *testing.T) {
	for _, c := range []struct {
		name         string
		path         path
		least, most  int
		want, rounds int
	}{
		{"all of it gets through", path{carries: 1500}, 576, 1500, 1500, 1},
		{"more than is asked for", path{carries: 9000}, 576, 1500, 1500, 1},
		{"a router says so", path{carries: 1400, told: true}, 576, 1500, 1400, 3},
		{"a router says so of a large one", path{carries: 1500, told: true}, 1280, 9000, 1500, 3},
		{"no router says anything", path{carries: 1400}, 576, 1500, 1400, 5},
		{"nor of a large one", path{carries: 1500}, 1280, 9000, 1500, 7},
		{"the least", path{carries: 1280}, 1280, 1500, 1280, 5},
		{"one less than the most", path{carries: 1499}, 576, 1500, 1499, 6},
		{"no room to search", path{carries: 1280}, 1280, 1280, 1280, 1},
		{"somebody lies of less", path{carries: 1400, forged: func(int) int { return 600 }}, 576, 1500, 1400, 7},
		{"somebody lies of more", path{carries: 1400, forged: func(int) int { return 65535 }}, 576, 1500, 1400, 7},
		{"somebody lies of nothing", path{carries: 1400, forged: func(int) int { return -1 }}, 576, 1500, 1400, 7},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := search(c.least, c.most, c.path.ask)
			if err != nil || got != c.want || c.path.rounds > c.rounds {
				t.Errorf("found %d in %d rounds (%v), want %d in at most %d", got, c.path.rounds, err, c.want, c.rounds)
			}
		})
	}
}

func TestSilence(t *testing.T) {
	for _, most := range []int{1280, 1281, 1500, 9000} {
		p := &path{}
		if got, err := search(1280, most, p.ask); !errors.Is(err, ErrSilent) {
			t.Errorf("up to %d: found %d (%v) where nothing answers", most, got, err)
		}
	}
}

// What was lost makes no path larger than it is, and one loss makes none smaller.
func TestSearchWithLosses(t *testing.T) {
	seed := rand.Uint64()
	t.Log("seed", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	for range 2000 {
		most := 1280 + r.IntN(8000)
		carries := 1280 + r.IntN(most-1279)
		lose, asked := r.IntN(12), 0
		p := &path{carries: carries, told: r.IntN(2) == 0, lost: func() bool { asked++; return asked-1 == lose }}
		got, err := search(1280, most, p.ask)
		switch {
		case errors.Is(err, ErrSilent): // the least was the one
		case err != nil || got > carries:
			t.Fatalf("up to %d, carries %d, loses the %d.: found %d (%v)", most, carries, lose, got, err)
		}
		p.lost = func() bool { return r.IntN(4) == 0 }
		if got, err := search(1280, most, p.ask); got > carries || err != nil && !errors.Is(err, ErrSilent) {
			t.Fatalf("up to %d, carries %d, loses a quarter: found %d (%v)", most, carries, got, err)
		}
	}
	// The largest lost at first does not make the path smaller.
	first := true
	p := &path{carries: 1500, lost: func() bool { defer func() { first = false }(); return first }}
	if got, err := search(576, 1500, p.ask); err != nil || got != 1500 {
		t.Errorf("found %d (%v) after the first was lost", got, err)
	}
}

func TestBetweenIsNeverEmpty(t *testing.T) {
	for found := 0; found < 40; found++ {
		for limit := max(found+2, 20); limit < 80; limit++ {
			for _, hint := range []int{0, -5, 20, 33, 1 << 30} {
				if found > 0 && found < 20 {
					continue
				}
				sizes := between(found, 20, limit, hint)
				if len(sizes) == 0 || sizes[0] <= found || slices.Max(sizes) >= limit && slices.Max(sizes) > 20 || !slices.IsSorted(sizes) {
					t.Fatalf("between %d and %d, told %d: %v", found, limit, hint, sizes)
				}
			}
		}
	}
}
