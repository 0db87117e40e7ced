package policy

import "github.com/prometheus/client_golang/prometheus"

func policiesDesc() *prometheus.Desc {
	return prometheus.NewDesc("rookery_network_policies", "NetworkPolicies of the cluster.", nil, nil)
}

func isolatedDesc() *prometheus.Desc {
	return prometheus.NewDesc("rookery_network_isolated_pods", "Pods of this peer that a NetworkPolicy selects.", []string{"direction"}, nil)
}

// Describe implements prometheus.Collector.
func (c *Controller) Describe(out chan<- *prometheus.Desc) {
	out <- policiesDesc()
	out <- isolatedDesc()
}

// Collect implements prometheus.Collector.
func (c *Controller) Collect(out chan<- prometheus.Metric) {
	c.mu.Lock()
	policies, isolated := c.policies, c.isolated
	c.mu.Unlock()
	out <- prometheus.MustNewConstMetric(policiesDesc(), prometheus.GaugeValue, float64(policies))
	for _, dir := range []direction{ingress, egress} {
		out <- prometheus.MustNewConstMetric(isolatedDesc(), prometheus.GaugeValue, float64(isolated[dir]), string(dir))
	}
}
