// Package usage turns counters of CPU time into the usage that metrics.k8s.io
// shows: of a machine and of the pods on it, over a window between two samples.
//
// Nothing is sampled unless somebody asks. The last two samples are kept, so that
// who asks every few seconds pays for one sample, and gets the average since the
// time before. Package node supplies the samples and serves the result.
package usage

import (
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metrics "k8s.io/metrics/pkg/apis/metrics/v1beta1"
)

// Counter is what something has used so far.
type Counter struct {
	At     time.Time
	CPU    time.Duration // all CPU time ever
	Memory int64         // working set in bytes, now
	// Processes and threads now; 0: not known.
	Processes int64
}

// Container is a running container's counter.
type Container struct {
	Counter
	ID, Name string
	Started  time.Time
}

// Pod is a pod's running containers.
type Pod struct {
	Namespace, Name, UID string
	Started              time.Time
	Labels               map[string]string
	Containers           []Container
	Network              []Interface // none: it has none of its own
}

// Sample is the state of all counters of a machine.
type Sample struct {
	Node    Counter
	Network []Interface
	Pods    []Pod
}

// youngest is how long a container must have run for an average since its start to
// say anything, where no earlier sample has it: metrics-server's ten seconds.
const youngest = 10 * time.Second

// window is two samples, the first taken before the second.
type window struct{ before, after *Sample }

// node is the machine's usage, without its name.
func (w window) node() metrics.NodeMetrics {
	length := w.after.Node.At.Sub(w.before.Node.At)
	return metrics.NodeMetrics{
		Timestamp: metav1.NewTime(w.after.Node.At), Window: metav1.Duration{Duration: length.Round(time.Millisecond)},
		Usage: list(w.after.Node.CPU-w.before.Node.CPU, length, w.after.Node.Memory),
	}
}

// pods is the usage of every pod of which all running containers can be told.
func (w window) pods() []metrics.PodMetrics {
	earlier := map[string]Counter{}
	for _, p := range w.before.Pods {
		for _, c := range p.Containers {
			earlier[c.ID] = c.Counter
		}
	}
	out := make([]metrics.PodMetrics, 0, len(w.after.Pods))
	for _, p := range w.after.Pods {
		m := metrics.PodMetrics{
			ObjectMeta: metav1.ObjectMeta{Namespace: p.Namespace, Name: p.Name, Labels: p.Labels},
			Timestamp:  metav1.NewTime(w.after.Node.At), Window: metav1.Duration{Duration: w.after.Node.At.Sub(w.before.Node.At)},
		}
		for _, c := range p.Containers {
			from, ok := earlier[c.ID]
			if !ok { // its counter began with it
				from = Counter{At: c.Started}
				m.Window.Duration = min(m.Window.Duration, c.At.Sub(c.Started))
				ok = c.At.Sub(c.Started) >= youngest
			}
			if length := c.At.Sub(from.At); ok && length > 0 {
				m.Containers = append(m.Containers, metrics.ContainerMetrics{Name: c.Name, Usage: list(c.CPU-from.CPU, length, c.Memory)})
			}
		}
		m.Window.Duration = m.Window.Round(time.Millisecond)
		if len(m.Containers) > 0 && len(m.Containers) == len(p.Containers) {
			out = append(out, m)
		}
	}
	return out
}

func list(spent, length time.Duration, memory int64) v1.ResourceList {
	cores := 0.0
	if spent > 0 && length > 0 {
		cores = spent.Seconds() / length.Seconds()
	}
	return v1.ResourceList{
		v1.ResourceCPU:    *resource.NewScaledQuantity(int64(cores*1e9), resource.Nano),
		v1.ResourceMemory: *resource.NewQuantity(memory, resource.BinarySI),
	}
}
