package main

import (
	"github.com/prometheus/client_golang/prometheus"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/rundigitalplatform/rookery/cluster"
)

// peerMetrics is what a peer says of itself at /metrics, beside what Go and
// Kubernetes' packages say. It is read when somebody asks and costs nothing else.
// docs/operations.md lists it.
type peerMetrics struct {
	gather func() observed
	build, leader, quorum, term, committed, applied, revision, peers, pods,
	ready *prometheus.Desc
}

// observed is one reading.
type observed struct {
	leader, quorum           bool
	term, committed, applied uint64
	revision                 int64
	peers                    map[cluster.State]int
	podsByPhase              map[corev1.PodPhase]int
	podsReady                int
}

func newPeerMetrics(gather func() observed) *peerMetrics {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("rookery_"+name, help, labels, nil)
	}
	return &peerMetrics{
		gather:    gather,
		build:     desc("build_info", "Always 1; the label is the version.", "version"),
		leader:    desc("raft_leader", "1 on the peer that leads."),
		quorum:    desc("raft_quorum", "1 if this peer knows a leader and reaches a majority of the voters."),
		term:      desc("raft_term", "The term of leadership."),
		committed: desc("raft_commit_index", "The newest log entry that this peer knows to be committed."),
		applied:   desc("raft_applied_index", "The newest log entry in this peer's state."),
		revision:  desc("store_revision", "The revision of this peer's state."),
		peers:     desc("peers", "Peers as this one sees them, itself included.", "state"),
		pods:      desc("pods", "Pods bound to this peer.", "phase"),
		ready:     desc("pods_ready", "Pods bound to this peer that are ready."),
	}
}

func (m *peerMetrics) all() []*prometheus.Desc {
	return []*prometheus.Desc{m.build, m.leader, m.quorum, m.term, m.committed, m.applied, m.revision, m.peers, m.pods, m.ready}
}

// Describe implements prometheus.Collector.
func (m *peerMetrics) Describe(out chan<- *prometheus.Desc) {
	for _, d := range m.all() {
		out <- d
	}
}

// Collect implements prometheus.Collector.
func (m *peerMetrics) Collect(out chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	o := m.gather()
	gauge(m.build, 1, version)
	gauge(m.leader, number(o.leader))
	gauge(m.quorum, number(o.quorum))
	gauge(m.term, float64(o.term))
	gauge(m.committed, float64(o.committed))
	gauge(m.applied, float64(o.applied))
	gauge(m.revision, float64(o.revision))
	for state, n := range o.peers {
		gauge(m.peers, float64(n), state.String())
	}
	for phase, n := range o.podsByPhase {
		gauge(m.pods, float64(n), string(phase))
	}
	gauge(m.ready, float64(o.podsReady))
}

func number(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// observe reads what this peer knows, from memory.
func (p *peer) observe() observed {
	raft := p.store.Status()
	o := observed{
		leader: raft.Leader == raft.Name, quorum: raft.Leader != "" && len(raft.Missing) <= (len(raft.Voters)-1)/2,
		term: raft.Term, committed: raft.Committed, applied: raft.Applied, revision: raft.Revision,
		peers: map[cluster.State]int{}, podsByPhase: map[corev1.PodPhase]int{},
	}
	for _, m := range p.members.Snapshot() {
		o.peers[m.State]++
	}
	pods, err := p.api.Informers().Core().V1().Pods().Lister().List(labels.Everything())
	if err != nil {
		p.log.Error("pods are not readable", "err", err)
	}
	for _, pod := range pods {
		if pod.Spec.NodeName != p.id.Name() {
			continue
		}
		o.podsByPhase[pod.Status.Phase]++
		if podReady(pod) {
			o.podsReady++
		}
	}
	return o
}
