package main

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"sigs.k8s.io/knftables"

	"github.com/rundigitalplatform/rookery/network"
	"github.com/rundigitalplatform/rookery/network/announce"
	"github.com/rundigitalplatform/rookery/network/nft"
)

// meteredNetwork is the network that Services and policies write their rules to. It measures
// that, and says what else is to be counted of packets; docs/operations.md lists it.
type meteredNetwork struct {
	*network.Network
	announcer atomic.Pointer[announce.Announcer] // nil: no addresses on the LAN are given out

	seconds                        *prometheus.HistogramVec
	failed                         *prometheus.CounterVec
	backend, pods, announced, path *prometheus.Desc
}

func newMeteredNetwork(n *network.Network) *meteredNetwork {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("rookery_network_"+name, help, labels, nil)
	}
	of := []string{"section", "family"}
	return &meteredNetwork{
		Network: n,
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "rookery_rules_seconds", Help: "How long the kernel's rules took to write, in seconds.", Buckets: []float64{.001, .005, .02, .1, .5, 2.5},
		}, of),
		failed:    prometheus.NewCounterVec(prometheus.CounterOpts{Name: "rookery_rules_failed_total", Help: "Rules that the kernel did not take; they are tried again."}, of),
		backend:   desc("backend", "Always 1; the label is how packets travel to other peers.", "backend"),
		pods:      desc("pods", "Pods of this peer that have an address."),
		path:      desc("path_mtu_bytes", "What the path to another peer carries, where it is less than is sent at most.", "peer"),
		announced: desc("announced", "Addresses on the LAN that this peer answers for."),
	}
}

// Apply is [network.Network.Apply].
func (m *meteredNetwork) Apply(ctx context.Context, family knftables.Family, section string, state nft.State) error {
	return m.measure(family, section, func() error { return m.Network.Apply(ctx, family, section, state) })
}

// Patch is [network.Network.Patch].
func (m *meteredNetwork) Patch(ctx context.Context, family knftables.Family, section string, patch nft.Patch) error {
	return m.measure(family, section, func() error { return m.Network.Patch(ctx, family, section, patch) })
}

func (m *meteredNetwork) measure(family knftables.Family, section string, write func() error) error {
	began := time.Now()
	err := write()
	if err != nil {
		m.failed.WithLabelValues(section, string(family)).Inc()
		return err
	}
	m.seconds.WithLabelValues(section, string(family)).Observe(time.Since(began).Seconds())
	return nil
}

// Describe implements prometheus.Collector.
func (m *meteredNetwork) Describe(out chan<- *prometheus.Desc) {
	m.seconds.Describe(out)
	m.failed.Describe(out)
	for _, d := range []*prometheus.Desc{m.backend, m.pods, m.announced, m.path} {
		out <- d
	}
}

// Collect implements prometheus.Collector.
func (m *meteredNetwork) Collect(out chan<- prometheus.Metric) {
	m.seconds.Collect(out)
	m.failed.Collect(out)
	gauge := func(d *prometheus.Desc, v int, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(v), labels...)
	}
	gauge(m.backend, 1, m.Backend())
	gauge(m.pods, len(m.Addresses()))
	for _, p := range m.Paths(context.Background(), false) {
		if p.MTU > 0 {
			gauge(m.path, p.MTU, p.Peer)
		}
	}
	if a := m.announcer.Load(); a != nil {
		gauge(m.announced, len(a.Addresses()))
	}
}
