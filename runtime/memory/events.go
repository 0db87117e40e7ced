package memory

import (
	"context"
	"errors"

	"github.com/rundigitalplatform/rookery/runtime"
)

// A subscriber that is this many events behind is cut off; it lists again.
const eventBacklog = 1024

type subscriber struct {
	owner  string
	events chan runtime.Event
	err    error // why events was closed
}

// publish never blocks. Called with the lock.
func (m *Machine) publish(s *sandbox, kind runtime.EventType, containerID string) {
	for sub := range m.subscribers {
		if sub.owner != s.owner {
			continue
		}
		select {
		case sub.events <- runtime.Event{Type: kind, Sandbox: s.state.Name, Container: containerID}:
		default:
			m.cutOff(sub, errors.New("receive events: too slow, events were lost"))
		}
	}
}

// cutOff ends a stream. Called with the lock.
func (m *Machine) cutOff(sub *subscriber, err error) {
	if _, ok := m.subscribers[sub]; ok {
		delete(m.subscribers, sub)
		sub.err = err
		close(sub.events)
	}
}

// Events implements runtime.Runtime.
func (r *Runtime) Events(ctx context.Context, ready func(), f func(runtime.Event)) error {
	if err := r.m.enter(ctx); err != nil {
		return err
	}
	sub := &subscriber{owner: r.owner, events: make(chan runtime.Event, eventBacklog)}
	r.m.subscribers[sub] = struct{}{}
	r.m.mu.Unlock()
	defer func() {
		r.m.mu.Lock()
		defer r.m.mu.Unlock()
		r.m.cutOff(sub, nil)
	}()
	if ready != nil {
		ready()
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case e, ok := <-sub.events:
			if !ok {
				return sub.err
			}
			f(e)
		}
	}
}
