package usage

import (
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	stats "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
)

// summary is what a kubelet says in /stats/summary, without files.
func (w window) summary(node string) stats.Summary {
	n := w.after.Node
	out := stats.Summary{Node: stats.NodeStats{NodeName: node}, Pods: []stats.PodStats{}}
	out.Node.CPU, out.Node.Memory = of(n, w.node().Usage)
	out.Node.Network = network(n.At, w.after.Network)
	rates := map[string]v1.ResourceList{}
	for _, p := range w.pods() {
		for _, c := range p.Containers {
			rates[p.Namespace+"/"+p.Name+"/"+c.Name] = c.Usage
		}
	}
	for _, p := range w.after.Pods {
		pod := stats.PodStats{PodRef: stats.PodReference{Name: p.Name, Namespace: p.Namespace, UID: p.UID}, StartTime: metav1.NewTime(p.Started)}
		sum := Counter{At: n.At}
		for _, c := range p.Containers {
			one := stats.ContainerStats{Name: c.Name, StartTime: metav1.NewTime(c.Started)}
			one.CPU, one.Memory = of(c.Counter, rates[p.Namespace+"/"+p.Name+"/"+c.Name])
			pod.Containers = append(pod.Containers, one)
			sum.CPU += c.CPU
			sum.Memory += c.Memory
			sum.Processes += c.Processes
		}
		if sum.Processes > 0 {
			pod.ProcessStats = &stats.ProcessStats{ProcessCount: new(uint64(sum.Processes))}
		}
		pod.Network = network(n.At, p.Network)
		pod.CPU, pod.Memory = of(sum, nil)
		out.Pods = append(out.Pods, pod)
	}
	return out
}

// of is a counter in a kubelet's terms; the rate is left out where there is none yet.
func of(c Counter, rate v1.ResourceList) (*stats.CPUStats, *stats.MemoryStats) {
	at, spent, memory := metav1.NewTime(c.At), uint64(c.CPU/time.Nanosecond), uint64(c.Memory)
	cpu := &stats.CPUStats{Time: at, UsageCoreNanoSeconds: &spent}
	if q, ok := rate[v1.ResourceCPU]; ok {
		nano := uint64(q.ScaledValue(-9))
		cpu.UsageNanoCores = &nano
	}
	return cpu, &stats.MemoryStats{Time: at, WorkingSetBytes: &memory}
}
