package controller

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/kubernetes/scheme"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"
)

// LoadBalancerClass is the spec.loadBalancerClass that asks for this load balancer by name. A
// Service without a class gets it as well, one with another class belongs to somebody else.
const LoadBalancerClass = "rookery/lan"

// AddressRange is addresses of the LAN that LoadBalancer Services may have, both ends included.
type AddressRange struct{ First, Last netip.Addr }

// ParseAddressRange reads "192.168.1.240-192.168.1.250", "192.168.1.240/28" or one address.
// Of a prefix every address counts.
func ParseAddressRange(text string) (AddressRange, error) {
	r, err := AddressRange{}, error(nil)
	if first, last, ok := strings.Cut(text, "-"); ok {
		if r.First, err = netip.ParseAddr(strings.TrimSpace(first)); err == nil {
			r.Last, err = netip.ParseAddr(strings.TrimSpace(last))
		}
	} else if p, perr := netip.ParsePrefix(text); perr == nil {
		r.First, r.Last = p.Masked().Addr(), p.Masked().Addr()
		if r.First.Is4() {
			b := r.First.As4()
			binary.BigEndian.PutUint32(b[:], binary.BigEndian.Uint32(b[:])|uint32(1<<(32-p.Bits())-1))
			r.Last = netip.AddrFrom4(b)
		}
	} else {
		r.First, err = netip.ParseAddr(text)
		r.Last = r.First
	}
	switch {
	case err != nil:
		return AddressRange{}, fmt.Errorf("%q is not a range such as 192.168.1.240-192.168.1.250, a network or an address", text)
	case !r.First.Is4() || !r.Last.Is4():
		return AddressRange{}, fmt.Errorf("%q: Services have IPv4 addresses only", text)
	case r.Last.Less(r.First):
		return AddressRange{}, fmt.Errorf("%q ends before it begins", text)
	}
	return r, nil
}

// Contains tells whether the address is in the range.
func (r AddressRange) Contains(a netip.Addr) bool { return !a.Less(r.First) && !r.Last.Less(a) }

// grant is what a Service gets: an address, or a reason why not.
type grant struct {
	addr    netip.Addr // invalid: none
	refusal string     // "" where none is wanted
}

// assign gives each Service that asks for one an address of the pool. Who has one keeps it,
// and the older Service goes first.
func assign(services []*corev1.Service, pool []AddressRange) map[*corev1.Service]grant {
	services = slices.SortedFunc(slices.Values(services), func(a, b *corev1.Service) int {
		return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	taken := map[netip.Addr]*corev1.Service{}
	out := map[*corev1.Service]grant{}
	// First those that have what they ask for, then who asks for one by name, then the rest.
	for _, pass := range []func(*corev1.Service) bool{
		func(s *corev1.Service) bool {
			a := granted(s)
			return contains(pool, a) && (requested(s) == "" || requested(s) == a.String())
		},
		func(s *corev1.Service) bool { return requested(s) != "" },
		func(*corev1.Service) bool { return true },
	} {
		for _, s := range services {
			if _, done := out[s]; done || !balanced(s) || !pass(s) {
				continue
			}
			v := choose(s, pool, taken)
			if out[s] = v; v.addr.IsValid() {
				taken[v.addr] = s
			}
		}
	}
	return out
}

func choose(s *corev1.Service, pool []AddressRange, taken map[netip.Addr]*corev1.Service) grant {
	if text := requested(s); text != "" {
		a, err := netip.ParseAddr(text)
		switch {
		case err != nil || !contains(pool, a):
			return grant{refusal: fmt.Sprintf("loadBalancerIP %s is not among the cluster's load-balancer-addresses", text)}
		case taken[a] != nil:
			return grant{refusal: fmt.Sprintf("loadBalancerIP %s belongs to service %s/%s", text, taken[a].Namespace, taken[a].Name)}
		}
		return grant{addr: a}
	}
	if a := granted(s); contains(pool, a) && taken[a] == nil {
		return grant{addr: a}
	}
	for _, r := range pool {
		for a := r.First; r.Contains(a); a = a.Next() {
			if taken[a] == nil {
				return grant{addr: a}
			}
		}
	}
	return grant{refusal: fmt.Sprintf("all %d load-balancer-addresses are in use: add some, or delete a Service of type LoadBalancer", len(taken))}
}

func contains(pool []AddressRange, a netip.Addr) bool {
	return a.IsValid() && slices.ContainsFunc(pool, func(r AddressRange) bool { return r.Contains(a) })
}

func balanced(s *corev1.Service) bool {
	return s.DeletionTimestamp == nil && s.Spec.Type == corev1.ServiceTypeLoadBalancer &&
		(s.Spec.LoadBalancerClass == nil || *s.Spec.LoadBalancerClass == LoadBalancerClass)
}

// requested is the address that the Service asks for by name, "" for any.
func requested(s *corev1.Service) string {
	return s.Spec.LoadBalancerIP
}

// granted is the address that the Service has now.
func granted(s *corev1.Service) netip.Addr {
	if len(s.Status.LoadBalancer.Ingress) == 0 {
		return netip.Addr{}
	}
	a, err := netip.ParseAddr(s.Status.LoadBalancer.Ingress[0].IP)
	if err != nil {
		return netip.Addr{}
	}
	return a
}

// runLoadBalancer gives out the addresses; the peers announce them.
func runLoadBalancer(ctx context.Context, e *env) error {
	if len(e.cfg.LoadBalancerAddresses) == 0 {
		<-ctx.Done() // nothing to give: such Services wait for another controller
		return nil
	}
	informer := e.Core().V1().Services()
	w := newWaker()
	if err := w.on(informer.Informer()); err != nil {
		return err
	}
	if err := e.synced(ctx, informer.Informer()); err != nil {
		return err
	}
	events := record.NewBroadcaster()
	events.StartRecordingToSink(&typedcorev1.EventSinkImpl{Interface: e.client.CoreV1().Events("")})
	defer events.Shutdown()
	b := balancer{env: e, events: events.NewRecorder(scheme.Scheme, corev1.EventSource{Component: "load-balancer"}), said: map[string]string{}}
	e.loop(ctx, w, nil, func(ctx context.Context) error {
		services, err := informer.Lister().List(labels.Everything())
		if err != nil {
			return fmt.Errorf("list services: %w", err)
		}
		return b.reconcile(ctx, services)
	})
	return nil
}

type balancer struct {
	*env
	events record.EventRecorder
	said   map[string]string // what each Service was told last, by its key
}

func (b *balancer) reconcile(ctx context.Context, services []*corev1.Service) error {
	var errs []error
	grants := assign(services, b.cfg.LoadBalancerAddresses)
	said := map[string]string{}
	for s, v := range grants {
		key := cache.MetaObjectToName(s).String()
		if said[key] = v.refusal; v.refusal != "" && b.said[key] != v.refusal {
			b.events.Event(s, corev1.EventTypeWarning, "NoAddress", v.refusal)
		}
		if err := b.write(ctx, s, v.addr); err != nil {
			errs = append(errs, fmt.Errorf("write address of service %s: %w", key, err))
		}
	}
	b.said = said
	return errors.Join(errs...)
}

// write brings the status to the address.
func (b *balancer) write(ctx context.Context, s *corev1.Service, addr netip.Addr) error {
	var want []corev1.LoadBalancerIngress
	if addr.IsValid() {
		mode := corev1.LoadBalancerIPModeVIP
		want = []corev1.LoadBalancerIngress{{IP: addr.String(), IPMode: &mode}}
	}
	if len(s.Status.LoadBalancer.Ingress) == len(want) && granted(s) == addr {
		return nil
	}
	s = s.DeepCopy()
	s.Status.LoadBalancer.Ingress = want
	_, err := b.client.CoreV1().Services(s.Namespace).UpdateStatus(ctx, s, metav1.UpdateOptions{})
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil // it has changed, and so it comes again
	}
	if err == nil && addr.IsValid() {
		b.events.Eventf(s, corev1.EventTypeNormal, "AddressGiven", "the peers answer for %s on the LAN", addr)
	}
	return err
}
