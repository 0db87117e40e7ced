package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/rundigitalplatform/rookery/cluster"
	"github.com/rundigitalplatform/rookery/cluster/identity"
	"github.com/rundigitalplatform/rookery/cmd/rookery/admin"
	"github.com/rundigitalplatform/rookery/network"
	"github.com/rundigitalplatform/rookery/network/overlay"
)

const (
	// netTimeout is how long one try may take: longer than two lost packets.
	netTimeout = 4 * time.Second
	// insideTimeout is how long it may take until there is a pod to try from.
	insideTimeout = 15 * time.Second
	// discard is a port that few pods listen on; a refusal is an answer as well.
	discard = 9
)

// way is one thing that can be reached from everywhere in the cluster.
type way struct {
	what, to string
	reach    func(context.Context, network.Dial) error
}

// netCheck looks for the path MTU to each other peer, and tries to reach the others from this
// peer, and from a pod on it: each peer on the pod network, one pod on each peer, the API's Service, and DNS; of each IP family that the cluster has.
// The pod is an empty network namespace, attached as any pod is for as long as the check takes.
func (p *peer) netCheck(ctx context.Context) []admin.Probe {
	self, pod := p.id.Name(), "a pod on "+p.id.Name()
	records, err := p.registry.Peers()
	if err != nil {
		return []admin.Probe{{From: self, To: "the peers", What: "pod network", Failed: err.Error()}}
	}
	paths := make(chan []admin.Probe, 1)
	go func() { paths <- p.lookAtPaths(ctx) }()
	pods, untried := p.waysToPods()
	ways := slices.Concat(p.waysToPeers(records), pods, p.waysToServices())
	all := try(ctx, self, ways, new(net.Dialer).DialContext)
	inside, cancel := context.WithTimeout(ctx, insideTimeout)
	defer cancel()
	err = p.network.Inside(inside, "rookery-net-check-"+rand.Text(), func(dial network.Dial) {
		all = append(all, try(inside, pod, ways, dial)...)
	})
	if err != nil {
		all = append(all, admin.Probe{From: pod, To: "everything", What: "pod network", Failed: err.Error()})
	}
	return slices.Concat(all, untried, <-paths)
}

// lookAtPaths says what packets get to the other peers.
func (p *peer) lookAtPaths(ctx context.Context) (all []admin.Probe) {
	for _, path := range p.network.Paths(ctx, true) {
		probe := admin.Probe{From: p.id.Name(), To: path.Peer, What: "path", Failed: p.tooSmall(path)}
		switch {
		case path.Silent:
			probe.Note = "its MTU is not known, as echo requests to " + path.To.String() + " are not answered"
		case path.MTU > 0:
			probe.Note = smaller(path)
		}
		all = append(all, probe)
	}
	return all
}

// smaller says of a path that carries less than others what that means.
func smaller(path network.Path) string {
	return fmt.Sprintf("it carries %d bytes, and up to %d are sent elsewhere; pods' packets there are at most %d bytes, which TCP adapts to", path.MTU, path.Most, path.Room)
}

// tooSmall says what does not work over a path; "" if all does.
func (p *peer) tooSmall(path network.Path) string {
	for _, r := range p.id.Settings().Ranges() {
		if r.PodCIDR.Addr().Is6() && path.Room < overlay.MinIPv6 {
			return fmt.Sprintf("the path to %s (%s) carries %d bytes, which leaves pods %d, and IPv6 needs %d: its larger packets get lost", path.Peer, path.To, path.MTU, path.Room, overlay.MinIPv6)
		}
	}
	return ""
}

// try goes all ways at once.
func try(ctx context.Context, from string, ways []way, dial network.Dial) []admin.Probe {
	ctx, cancel := context.WithTimeout(ctx, netTimeout)
	defer cancel()
	all := make([]admin.Probe, len(ways))
	var wait sync.WaitGroup
	for i, w := range ways {
		all[i] = admin.Probe{From: from, To: w.to, What: w.what}
		wait.Go(func() {
			if err := w.reach(ctx, dial); err != nil {
				all[i].Failed = err.Error()
			}
		})
	}
	wait.Wait()
	return all
}

// waysToPeers lead to the other peers' own addresses on the pod network.
func (p *peer) waysToPeers(records []cluster.Peer) (ways []way) {
	settings := p.id.Settings()
	for _, r := range records {
		if r.Name == p.id.Name() || r.Witness {
			continue
		}
		for _, share := range settings.PeerCIDRs(r.PodCIDR) {
			own := netip.AddrPortFrom(share.Masked().Addr().Next(), r.Port)
			ways = append(ways, way{"pod network", ofFamily(settings, r.Name, own.Addr()), func(ctx context.Context, dial network.Dial) error { return connect(ctx, dial, own) }})
		}
	}
	return ways
}

// waysToPods lead to one pod on each peer. The probes are of peers that have pods, none of which can
// be tried.
func (p *peer) waysToPods() (ways []way, untried []admin.Probe) {
	pods, err1 := p.api.Informers().Core().V1().Pods().Lister().List(labels.Everything())
	policies, err2 := p.api.Informers().Networking().V1().NetworkPolicies().Lister().List(labels.Everything())
	if err := errors.Join(err1, err2); err != nil {
		p.log.Error("pods and network policies are not readable", "err", err)
	}
	for node, pod := range onePodEach(pods, policies, p.live.alive) {
		if pod == nil {
			untried = append(untried, admin.Probe{From: p.id.Name(), To: "a pod on " + node, What: "pod", Untried: "network policies isolate all pods there"})
			continue
		}
		for _, at := range pod.Status.PodIPs {
			ip, err := netip.ParseAddr(at.IP)
			if err != nil {
				continue // of no pod network, so not ours to try
			}
			to := ofFamily(p.id.Settings(), fmt.Sprintf("%s/%s on %s", pod.Namespace, pod.Name, node), ip)
			ways = append(ways, way{"pod", to, func(ctx context.Context, dial network.Dial) error {
				return connect(ctx, dial, netip.AddrPortFrom(ip, discard))
			}})
		}
	}
	slices.SortFunc(ways, func(a, b way) int { return cmp.Compare(a.to, b.to) })
	slices.SortFunc(untried, func(a, b admin.Probe) int { return cmp.Compare(a.To, b.To) })
	return ways, untried
}

// waysToServices lead to the API's Service, by its addresses and by its name.
func (p *peer) waysToServices() (ways []way) {
	settings := p.id.Settings()
	if svc, err := p.api.Informers().Core().V1().Services().Lister().Services("default").Get("kubernetes"); err == nil {
		for _, text := range svc.Spec.ClusterIPs {
			if ip, err := netip.ParseAddr(text); err == nil {
				at := netip.AddrPortFrom(ip, uint16(svc.Spec.Ports[0].Port))
				ways = append(ways, way{"Service", ofFamily(settings, "default/kubernetes", ip), func(ctx context.Context, dial network.Dial) error { return accepted(ctx, dial, at) }})
			}
		}
	}
	name := "kubernetes.default.svc." + settings.Domain
	for _, r := range settings.Ranges() {
		server := netip.AddrPortFrom(r.DNS, 53).String()
		ways = append(ways, way{"DNS", ofFamily(settings, name, r.DNS), func(ctx context.Context, dial network.Dial) error {
			resolver := net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) { return dial(ctx, network, server) }}
			_, err := resolver.LookupNetIP(ctx, "ip", name+".")
			return err
		}})
	}
	return ways
}

// ofFamily says of what IP family a way is, where the cluster has two.
func ofFamily(settings identity.Settings, to string, ip netip.Addr) string {
	switch {
	case len(settings.Ranges()) == 1:
		return to
	case ip.Is4():
		return to + " (IPv4)"
	}
	return to + " (IPv6)"
}

// onePodEach is a Ready pod of each peer that lives, with an address of its own; nil where policies
// isolate all of them: a refusal would be the policies', and be counted and logged as one.
func onePodEach(pods []*corev1.Pod, policies []*networkingv1.NetworkPolicy, alive func(node string) bool) map[string]*corev1.Pod {
	out := map[string]*corev1.Pod{}
	for _, pod := range pods {
		node := pod.Spec.NodeName
		if pod.Spec.HostNetwork || !podReady(pod) || !alive(node) {
			continue
		}
		have := out[node]
		switch {
		case isolated(pod, policies):
			out[node] = have // at least known to have one
		case have == nil || pod.UID < have.UID:
			out[node] = pod
		}
	}
	return out
}

// isolated tells whether a policy says who may connect to the pod.
func isolated(pod *corev1.Pod, policies []*networkingv1.NetworkPolicy) bool {
	return slices.ContainsFunc(policies, func(p *networkingv1.NetworkPolicy) bool {
		if p.Namespace != pod.Namespace || len(p.Spec.PolicyTypes) > 0 && !slices.Contains(p.Spec.PolicyTypes, networkingv1.PolicyTypeIngress) {
			return false
		}
		selector, err := metav1.LabelSelectorAsSelector(&p.Spec.PodSelector)
		return err == nil && selector.Matches(labels.Set(pod.Labels))
	})
}

// connect is content with a refusal: somebody is there.
func connect(ctx context.Context, dial network.Dial, at netip.AddrPort) error {
	if err := accepted(ctx, dial, at); err != nil && !errors.Is(err, syscall.ECONNREFUSED) {
		return err
	}
	return nil
}

func accepted(ctx context.Context, dial network.Dial, at netip.AddrPort) error {
	conn, err := dial(ctx, "tcp", at.String())
	if err != nil {
		return err
	}
	return conn.Close()
}
