package pathmtu

import "slices"

// answer is what came of packets of several sizes.
type answer struct {
	largest int // that got through; 0: none
	hint    int // what a router says that it carries; 0: none said anything
}

// splits is how many sizes between two are asked for at once: few enough for any queue on
// the way, and enough to come to one byte of 1500 in three rounds.
const splits = 8

// rechecks is how often what was found may turn out too small before it is taken all the
// same: on a path that loses that much the next search will do better.
const rechecks = 3

// search finds the largest size up to most that gets through. What is not answered may as
// well have been lost, so in the end the next larger size and most are asked for once more.
func search(least, most int, ask func(sizes []int) (answer, error)) (int, error) {
	got, err := ask([]int{most})
	for range rechecks {
		if err != nil || got.largest == most {
			return got.largest, err
		}
		found, err := narrow(got, least, most, ask)
		if err != nil || found == most {
			return found, err
		}
		if got, err = ask(slices.Compact([]int{found + 1, most})); err != nil || got.largest == 0 {
			return found, err
		}
	}
	return got.largest, nil
}

// narrow finds the largest size below limit that gets through, from what is known so far. Of
// the limit it is thought that it does not, unless it is the least.
func narrow(known answer, least, limit int, ask func(sizes []int) (answer, error)) (int, error) {
	found, hint := known.largest, known.hint
	for limit-found > 1 {
		sizes := between(found, least, limit, hint)
		got, err := ask(sizes)
		if err != nil {
			return 0, err
		}
		if found = max(found, got.largest); found == 0 {
			return 0, ErrSilent
		}
		for _, size := range sizes {
			if size > found {
				limit = min(limit, size)
			}
		}
		hint = got.hint
	}
	return found, nil
}

// between are the sizes to ask for next: above found, or from least on if nothing was
// found yet, below limit, what a router said among them. It is never empty.
func between(found, least, limit, hint int) []int {
	from := max(found, least)
	sizes := []int{hint, hint + 1}
	if found == 0 {
		sizes = append(sizes, least)
	}
	for i := range splits {
		sizes = append(sizes, from+(limit-from)*(i+1)/(splits+1))
	}
	slices.Sort(sizes)
	return slices.DeleteFunc(slices.Compact(sizes), func(size int) bool {
		return size <= found || size < least || size >= limit && size > least
	})
}
