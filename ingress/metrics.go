package ingress

import (
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Metrics count requests; docs/operations.md lists them.
type Metrics struct {
	requests *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
	retries  *prometheus.CounterVec
}

// NewMetrics makes them; register the result, and give it to one Config.
func NewMetrics() *Metrics {
	return &Metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "rookery_ingress_requests_total", Help: "Requests by Ingress (empty: none matched) and status."}, []string{"ingress", "code"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "rookery_ingress_request_seconds", Help: "How long requests took, in seconds.", Buckets: []float64{.005, .025, .1, .5, 2.5, 10, 60},
		}, []string{"ingress"}),
		retries: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "rookery_ingress_retries_total", Help: "Endpoints that could not be reached, so that another one was tried."}, []string{"ingress"}),
	}
}

func (m *Metrics) count(ingress string, code int, took time.Duration, tries int) {
	m.requests.WithLabelValues(ingress, strconv.Itoa(code)).Inc()
	m.seconds.WithLabelValues(ingress).Observe(took.Seconds())
	if tries > 1 {
		m.retries.WithLabelValues(ingress).Add(float64(tries - 1))
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
	return []prometheus.Collector{m.requests, m.seconds, m.retries}
}
