package usage

import (
	"bytes"
	"fmt"
	"io"
)

// expose writes a sample as a kubelet's /metrics/resource does, in Prometheus' text format.
func (s *Sample) expose(to io.Writer) error {
	var b bytes.Buffer
	write := func(name, help, kind string, values func(line func(labels string, value float64))) {
		fmt.Fprintf(&b, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, kind)
		values(func(labels string, value float64) { fmt.Fprintf(&b, "%s%s %g\n", name, labels, value) })
	}
	// Names of objects need no escaping.
	containers := func(of func(Container) float64) func(func(string, float64)) {
		return func(line func(string, float64)) {
			for _, p := range s.Pods {
				for _, c := range p.Containers {
					line(fmt.Sprintf("{container=%q,namespace=%q,pod=%q}", c.Name, p.Namespace, p.Name), of(c))
				}
			}
		}
	}
	pods := func(of func(Container) float64) func(func(string, float64)) {
		return func(line func(string, float64)) {
			for _, p := range s.Pods {
				sum := 0.0
				for _, c := range p.Containers {
					sum += of(c)
				}
				line(fmt.Sprintf("{namespace=%q,pod=%q}", p.Namespace, p.Name), sum)
			}
		}
	}
	cpu, memory := func(c Container) float64 { return c.CPU.Seconds() }, func(c Container) float64 { return float64(c.Memory) }
	write("container_cpu_usage_seconds_total", "Cumulative cpu time consumed by the container in core-seconds", "counter", containers(cpu))
	write("container_memory_working_set_bytes", "Current working set of the container in bytes", "gauge", containers(memory))
	write("node_cpu_usage_seconds_total", "Cumulative cpu time consumed by the node in core-seconds", "counter", func(line func(string, float64)) { line("", s.Node.CPU.Seconds()) })
	write("node_memory_working_set_bytes", "Current working set of the node in bytes", "gauge", func(line func(string, float64)) { line("", float64(s.Node.Memory)) })
	write("pod_cpu_usage_seconds_total", "Cumulative cpu time consumed by the pod in core-seconds", "counter", pods(cpu))
	write("pod_memory_working_set_bytes", "Current working set of the pod in bytes", "gauge", pods(memory))
	_, err := to.Write(b.Bytes())
	return err
}
