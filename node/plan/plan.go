// Package plan decides what has to be done next for one pod: a pure function of
// the wanted pod, the actual sandbox, what is remembered, the probes' verdicts and
// the time. Called again after every change, it leads a pod from nothing to running
// and from running to gone, one step a call.
//
// It starts nothing and waits for nothing; package node carries the actions out and
// tells through Input.Busy which ones are under way.
package plan

import (
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/rundigitalplatform/rookery/runtime"
)

// Kind is what an action does.
type Kind string

const (
	SetupVolumes  Kind = "setup volumes"
	RunSandbox    Kind = "run sandbox"
	RemoveSandbox Kind = "remove sandbox" // a dead one, to be replaced; or, with a container, one that starts over because of that
	Attach        Kind = "attach network"
	Start         Kind = "start container" // image, create, start, postStart
	Stop          Kind = "stop container"  // preStop, signal, kill
	Resize        Kind = "resize container"
	CancelStart   Kind = "cancel start"
	CancelStop    Kind = "cancel stop" // the grace became shorter: stop again
	Teardown      Kind = "tear down"   // sandbox and network; files too if Remove
)

// Action is one step. Container is empty for those of the whole pod, but for a reset.
type Action struct {
	Kind      Kind
	Container string
	ID        string // Stop, Resize: the container's
	Attempt   int    // Start
	Grace     time.Duration
	Why       string // Stop: for the event
	Remove    bool   // Teardown: of a deleted pod, of which nothing remains
}

// Halt says that the pod has to end. The zero value: it has to run.
type Halt struct {
	Since  time.Time
	Grace  time.Duration // for all of its containers together, from Since
	Remove bool          // the pod is deleted; otherwise its containers stay to be looked at
	// Discard says that they do not, for the machine needs what they take.
	Discard bool
	// Resumes says that the pod has not ended: the machine stops, and it runs again with it.
	Resumes bool
}

// Health is what the probes say about a running container.
type Health struct {
	Started   bool   // startup probe passed, or there is none
	Unhealthy string // why it must be restarted; empty if it must not
	Grace     *int64 // the failed probe's own terminationGracePeriodSeconds
}

// Task is what is under way for a container, or for the whole pod under the name "".
type Task struct {
	Kind  Kind
	Grace time.Duration // Stop: what it was begun with
	Since time.Time
}

// Input is one snapshot.
type Input struct {
	Pod          *v1.Pod
	Now          time.Time
	Halt         Halt
	Sandbox      *runtime.Sandbox // nil: there is none
	VolumesReady bool
	Attached     bool      // the sandbox has its addresses, or needs none
	NotBefore    time.Time // of the next action for the whole pod, after a failure
	TornDown     bool      // the last Teardown that Halt asked for has succeeded
	NoRoom       bool      // what the pod asks for does not fit this peer: leave its resources as they are
	Memory       map[string]*Memory
	Health       map[string]Health // by container name
	Busy         map[string]Task
}

// Result is what to do. Actions are for different containers and may run in parallel.
type Result struct {
	Actions []Action
	Wake    time.Time // when to ask again if nothing happens; zero: never
	// Finished: no container will run again; the caller halts the pod to stop its sidecars.
	Finished bool
	Done     bool // halted, and nothing is left to do
}

// Next decides. Observe has to be called with the same snapshot before.
func Next(in Input) Result {
	s := &step{Input: in}
	if !in.Halt.Since.IsZero() {
		s.stop()
	} else {
		s.run()
	}
	return s.Result
}

type step struct {
	Input
	Result
}

func (s *step) do(a Action) { s.Actions = append(s.Actions, a) }

func (s *step) wake(at time.Time) {
	if s.Wake.IsZero() || at.Before(s.Wake) {
		s.Wake = at
	}
}

func (s *step) busy(container string) bool {
	_, ok := s.Busy[container]
	return ok
}

// whole does an action for the whole pod, one at a time and not too soon after a failure.
func (s *step) whole(a Action) {
	switch {
	case s.busy(""):
	case s.Now.Before(s.NotBefore):
		s.wake(s.NotBefore)
	default:
		s.do(a)
	}
}
