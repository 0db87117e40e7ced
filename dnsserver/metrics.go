package dnsserver

import (
	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"
)

// Metrics count what the server does; docs/operations.md lists them.
type Metrics struct {
	answers *prometheus.CounterVec
	limited *prometheus.CounterVec
	forward *prometheus.CounterVec
}

// NewMetrics makes them; register the result, and give it to one Config.
func NewMetrics() *Metrics {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: "rookery_dns_" + name, Help: help}, labels)
	}
	return &Metrics{
		answers: counter("answers_total", "Questions answered, by who asked (inside, lan) and how.", "client", "rcode"),
		limited: counter("limited_total", "Answers by udp that were too many for their client network.", "action"),
		forward: counter("forwarded_total", "Questions for other name servers: from the cache, an old answer, asked, or failed.", "result"),
	}
}

// Describe implements prometheus.Collector.
func (m *Metrics) Describe(out chan<- *prometheus.Desc) {
	for _, c := range m.all() {
		c.Describe(out)
	}
}

// Collect implements prometheus.Collector.
func (m *Metrics) Collect(out chan<- prometheus.Metric) {
	for _, c := range m.all() {
		c.Collect(out)
	}
}

func (m *Metrics) all() []prometheus.Collector {
	return []prometheus.Collector{m.answers, m.limited, m.forward}
}

func (m *Metrics) count(who view, resp *dns.Msg) {
	client := "inside"
	if who.limited {
		client = "lan"
	}
	rcode, known := dns.RcodeToString[resp.Rcode]
	if !known {
		rcode = "other"
	}
	m.answers.WithLabelValues(client, rcode).Inc()
}
