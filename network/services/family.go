package services

import (
	"context"
	"iter"
)

// family is what the controller knows of one IP family: what is wanted of its rules, and what of
// udp and health agrees with those that were written last.
type family struct {
	self     Self
	current  bool // the rules are those of computer
	computer *computer
	udp      map[frontend]endpoints
	health   map[uint16]health
}

// write brings the rules to what the Services of the keys, which are all unless f is current, come
// to now. After an error nothing is remembered of the rules, and the next write computes and
// compares all of them: there is no other way back than that of a start. It returns the
// flows that the rules of before have made and those of now would not, nil if there are none.
func (f *family) write(ctx context.Context, rules Rules, section string, keys iter.Seq[string], o objects) (*staleFlows, error) {
	whole := !f.current
	if whole {
		f.computer = newComputer(f.self)
	}
	change := f.computer.update(keys, o)
	f.current = false
	if whole {
		state := base(f.self)
		state.Apply(change.rules)
		if err := rules.Apply(ctx, f.self.family(), section, state); err != nil {
			return nil, err
		}
		change.udp.since(f.udp)
		change.health.since(f.health)
	} else if err := rules.Patch(ctx, f.self.family(), section, change.rules); err != nil {
		return nil, err
	}
	f.current = true
	change.health.apply(f.health)
	was := change.udp.apply(f.udp)
	return stale(was, f.udp, change), nil
}
