package plan

import (
	"fmt"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/rundigitalplatform/rookery/node/spec"
	"github.com/rundigitalplatform/rookery/runtime"
)

// Memory is what is remembered of a container beside what the engine says. It is
// kept on disk, so that restart counts and backoff outlive daemon and power.
type Memory struct {
	Attempt int                          `json:"attempt"`         // of the newest container; -1: none yet. It is the restart count.
	Fresh   bool                         `json:"fresh,omitempty"` // nothing was tried in the present sandbox
	Ended   *v1.ContainerStateTerminated `json:"ended,omitempty"` // how the newest ended, where the engine cannot say
	Last    *v1.ContainerStateTerminated `json:"last,omitempty"`  // how the one before it ended
	Backoff time.Duration                `json:"backoff,omitempty"`
	At      time.Time                    `json:"at,omitzero"` // the end that Backoff was raised for
	// Interrupted says that the newest ran when the machine began to stop. How it ends then
	// says nothing of its work, so it counts as what the loss of power would have made of it.
	Interrupted bool `json:"interrupted,omitempty"`
	// Resources are what the newest attempt runs with; nil: it has not started.
	Resources *runtime.Resources        `json:"resources,omitempty"`
	Resizing  string                    `json:"-"` // why they could not be changed to Wanted
	Wanted    *runtime.Resources        `json:"-"`
	Waiting   *v1.ContainerStateWaiting `json:"-"` // why the last try did not get it running
	Retry     time.Time                 `json:"-"` // not before
	Tries     int                       `json:"-"` // in a row that did not get it running
}

// NewMemory is of a container that was never started.
func NewMemory() *Memory { return &Memory{Attempt: -1, Fresh: true} }

// Crash backoff as in kubelet: the first restart is at once, then 10 s doubling to
// 5 min; it is forgotten after a run of 10 min.
const (
	firstBackoff = 10 * time.Second
	maxBackoff   = 5 * time.Minute
	resetBackoff = 2 * maxBackoff
)

// clockSlack is how far ahead of now an end may be by rounding.
const clockSlack = 2 * time.Second

// Due is when a container that ended so may start again; zero if it has not ended. An end
// in the future was told by a clock that has been set back since: as its backoff would last
// as long as the clock was wrong, there is none.
func (m *Memory) Due(end *v1.ContainerStateTerminated, now time.Time) time.Time {
	switch {
	case end == nil:
		return time.Time{}
	case end.FinishedAt.After(now.Add(clockSlack)):
		return now
	case m.Backoff == 0 || end.FinishedAt.Sub(m.At) > resetBackoff:
		return end.FinishedAt.Time
	}
	return end.FinishedAt.Add(m.Backoff)
}

// Restarted notes that attempt is created in place of one that ended so; nil: the first.
func (m *Memory) Restarted(attempt int, before *v1.ContainerStateTerminated) {
	if before != nil {
		ended := before.FinishedAt.Time
		if !m.Fresh {
			m.raise(ended)
		}
		m.Last = before
	}
	m.Attempt, m.Fresh, m.Ended, m.Interrupted = attempt, false, nil, false
	m.Waiting, m.Retry, m.Tries, m.Resizing, m.Wanted = nil, time.Time{}, 0, "", nil
}

// raise is for an end that leads to a restart.
func (m *Memory) raise(ended time.Time) {
	if m.Backoff == 0 || ended.Sub(m.At) > resetBackoff {
		m.Backoff, m.At = firstBackoff, ended
	} else {
		m.Backoff, m.At = min(2*m.Backoff, maxBackoff), ended
	}
}

// Newest returns the container's newest attempt in the sandbox, or nil.
func Newest(sandbox *runtime.Sandbox, name string) *runtime.Container {
	return attemptBelow(sandbox, name, int(^uint(0)>>1))
}

// Previous returns the newest attempt but one, or nil.
func Previous(sandbox *runtime.Sandbox, name string) *runtime.Container {
	c := Newest(sandbox, name)
	if c == nil {
		return nil
	}
	_, attempt, _ := spec.ContainerIdentity(*c)
	return attemptBelow(sandbox, name, attempt)
}

func attemptBelow(sandbox *runtime.Sandbox, name string, limit int) *runtime.Container {
	if sandbox == nil {
		return nil
	}
	var out *runtime.Container
	best := -1
	for i := range sandbox.Containers {
		n, attempt, ok := spec.ContainerIdentity(sandbox.Containers[i])
		if ok && n == name && attempt > best && attempt < limit {
			out, best = &sandbox.Containers[i], attempt
		}
	}
	return out
}

// StartFailed is why a container waits whose start failed, as kubelet calls it. If it has
// no Ended, the engine did not say in time whether it started.
const StartFailed = "RunContainerError"

// Observe brings the memory up to what the engine says: adopts containers that a
// former daemon started or that started late, and notes those that went away behind our back.
// Terminated translates a container that has exited.
func Observe(in Input, terminated func(name string, c *runtime.Container) *v1.ContainerStateTerminated) {
	for name, m := range in.Memory {
		if _, busy := in.Busy[name]; busy {
			continue
		}
		c := Newest(in.Sandbox, name)
		if c == nil {
			if !m.Fresh && m.Ended == nil {
				m.Ended = gone(in.Now)
			}
			continue
		}
		_, attempt, _ := spec.ContainerIdentity(*c)
		if attempt > m.Attempt || m.Fresh && attempt == m.Attempt {
			m.Attempt, m.Fresh, m.Ended, m.Interrupted = attempt, false, nil, false
			if p := Previous(in.Sandbox, name); p != nil && p.State == runtime.Exited {
				m.Last = terminated(name, p)
			}
		}
		switch {
		case c.State == runtime.Running: // also after a start that seemed to have failed
			m.Ended, m.Waiting, m.Interrupted = nil, nil, in.Halt.Resumes
		case c.State == runtime.Exited && m.Ended == nil && m.Waiting != nil && m.Waiting.Reason == StartFailed:
			m.Waiting, m.Retry = nil, time.Time{} // it was started late after all
		}
	}
}

// killed is how a container has exited that was ended with all force.
const killed = 137

// Outcome is how the newest attempt counts as ended that has ended so.
func (m *Memory) Outcome(end *v1.ContainerStateTerminated) *v1.ContainerStateTerminated {
	if m.Interrupted {
		end.Message = fmt.Sprintf("The container was stopped because the machine stopped; it exited with %d", end.ExitCode)
		end.ExitCode, end.Reason = killed, "Error"
	}
	return end
}

// gone is how kubelet reports a container that was removed by someone else.
func gone(now time.Time) *v1.ContainerStateTerminated {
	return &v1.ContainerStateTerminated{
		ExitCode:   killed,
		Reason:     "ContainerStatusUnknown",
		Message:    "The container could not be located when the pod was looked at",
		FinishedAt: metav1.NewTime(now),
	}
}

// SandboxReplaced forgets the sandbox that is no more: init containers run again
// in the next one, the others as their restart policy says.
func SandboxReplaced(pod *v1.Pod, memory map[string]*Memory, old *runtime.Sandbox, now time.Time, terminated func(name string, c *runtime.Container) *v1.ContainerStateTerminated) {
	for name, m := range memory {
		if c := Newest(old, name); c != nil && m.Ended == nil {
			switch {
			case c.State == runtime.Exited:
				m.Ended = terminated(name, c)
			case c.State == runtime.Running, !c.Started.IsZero(): // after a reboot Podman knows no more than that it was started
				m.Ended = gone(now)
				m.Ended.Message = "The container ended with its sandbox"
				m.Ended.StartedAt = metav1.NewTime(c.Started)
			default: // created, never started
				m.Fresh = true
			}
		}
	}
	for i := range pod.Spec.InitContainers {
		if m := memory[pod.Spec.InitContainers[i].Name]; m != nil && !m.Fresh {
			if m.Ended != nil {
				m.Last = m.Ended
			}
			m.Ended, m.Fresh = nil, true
		}
	}
}
