package refused

import (
	"cmp"
	"context"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	corelisters "k8s.io/client-go/listers/core/v1"
	"sigs.k8s.io/knftables"

	"github.com/rundigitalplatform/rookery/network/nft"
)

// Config is what a [Watcher] is made from; all fields are required.
type Config struct {
	Families []knftables.Family
	// Counts reads a set of the family's table.
	Counts func(family knftables.Family, set string) ([]nft.Count, error)
	Pods   corelisters.PodLister
	// Device is the machine's end of a pod's interface, by the pod's UID.
	Device func(uid string) string
	Log    *slog.Logger
}

// Watcher reads what was refused. It is a prometheus.Collector as well.
type Watcher struct {
	cfg     Config
	packets *prometheus.Desc

	mu    sync.Mutex
	seen  map[element]uint64 // packets at the last reading
	total map[Reason]uint64
	said  map[string]time.Time // when a pod was last told of, by pod and reason
	wrong string               // what could not be read, as it was said
}

type element struct {
	reason Reason
	family knftables.Family
	key    string
}

// New returns a watcher that does nothing until Run.
func New(cfg Config) *Watcher {
	return &Watcher{
		cfg: cfg, seen: map[element]uint64{}, total: map[Reason]uint64{}, said: map[string]time.Time{},
		packets: prometheus.NewDesc("rookery_network_refused_packets_total", "Packets from and to pods of this peer that were refused: by the sender's policies (egress), the receiver's (ingress), or for a source address that is not the sender's (source).", []string{"reason"}, nil),
	}
}

const (
	// every is how soon a refusal is in the log.
	every = time.Minute
	// again is when a pod that goes on is told of once more.
	again = time.Hour
)

// Run reads until ctx ends.
func (w *Watcher) Run(ctx context.Context) error {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			w.read(time.Now())
		}
	}
}

// Describe implements prometheus.Collector.
func (w *Watcher) Describe(out chan<- *prometheus.Desc) { out <- w.packets }

// Collect implements prometheus.Collector.
func (w *Watcher) Collect(out chan<- prometheus.Metric) {
	for reason, n := range w.read(time.Now()) {
		out <- prometheus.MustNewConstMetric(w.packets, prometheus.CounterValue, float64(n), string(reason))
	}
}

// read looks at every set, tells of what is new, and returns the totals.
func (w *Watcher) read(now time.Time) map[Reason]uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	seen := map[element]uint64{}
	names := w.names()
	wrong := ""
	totals := map[Reason]uint64{}
	for _, reason := range Reasons() {
		for _, family := range w.cfg.Families {
			counts, err := w.cfg.Counts(family, reason.Set())
			if err != nil {
				wrong = err.Error()
				for id, packets := range w.seen { // or they would count anew the next time
					if id.reason == reason && id.family == family {
						seen[id] = packets
					}
				}
				continue
			}
			for _, c := range counts {
				id := element{reason, family, string(c.Key)}
				seen[id] = c.Packets
				more := c.Packets
				if before := w.seen[id]; before <= more { // else it was forgotten, and began anew
					more -= before
				}
				if f, ok := parse(reason, family, c.Key); ok && more > 0 {
					w.total[reason] += more
					w.tell(now, reason, f, more, names)
				}
			}
		}
		totals[reason] = w.total[reason]
	}
	if w.wrong != wrong && wrong != "" {
		w.cfg.Log.Warn("what was refused is not known", "error", wrong)
	}
	w.seen, w.wrong = seen, wrong
	for pod, at := range w.said {
		if now.Sub(at) >= again {
			delete(w.said, pod)
		}
	}
	return totals
}

func (w *Watcher) tell(now time.Time, reason Reason, f flow, packets uint64, names func() names) {
	known := names()
	pod, other := known.of(f.from), known.of(f.to)
	switch reason {
	case Ingress:
		pod, other = other, pod
	case Source:
		pod = known.device(f.device)
	}
	key := string(reason) + " " + pod
	if at, told := w.said[key]; told && now.Sub(at) < again {
		return
	}
	w.said[key] = now
	_, isPod := known.byDevice[f.device]
	switch {
	case reason == Source && !isPod:
		w.cfg.Log.Warn("somebody outside the cluster sends under an address of the pod network: dropped", "device", f.device, "source", f.from, "packets", packets)
	case reason == Source:
		w.cfg.Log.Warn("a pod sends under an address that is not its own: dropped", "pod", pod, "source", f.from, "packets", packets)
	case reason == Egress:
		w.cfg.Log.Warn("a pod sends what its network policies do not allow: refused", "pod", pod, "to", other, "port", f.service(), "packets", packets)
	case reason == Ingress:
		w.cfg.Log.Warn("network policies do not allow what a pod is sent: refused", "pod", pod, "from", other, "port", f.service(), "packets", packets)
	}
}

// names are those of pods.
type names struct {
	byAddr   map[netip.Addr]string
	byDevice map[string]string
}

// names returns what reads the pods once, if it is called at all.
func (w *Watcher) names() func() names {
	return sync.OnceValue(func() names {
		n := names{byAddr: map[netip.Addr]string{}, byDevice: map[string]string{}}
		pods, err := w.cfg.Pods.List(labels.Everything())
		if err != nil {
			w.cfg.Log.Error("pods are not readable", "error", err)
		}
		for _, pod := range pods {
			name := pod.Namespace + "/" + pod.Name
			n.byDevice[w.cfg.Device(string(pod.UID))] = name
			if pod.Spec.HostNetwork || pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed {
				continue
			}
			for _, ip := range pod.Status.PodIPs {
				if a, err := netip.ParseAddr(ip.IP); err == nil {
					n.byAddr[a] = name
				}
			}
		}
		return n
	})
}

func (n names) of(a netip.Addr) string { return cmp.Or(n.byAddr[a], a.String()) }

func (n names) device(name string) string {
	if pod, ok := n.byDevice[name]; ok {
		return pod
	}
	return "device " + name
}
