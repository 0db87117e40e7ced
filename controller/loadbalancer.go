package controller

import (
	"cmp"
	"context"
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
		r.First = p.Masked().Addr()
		b := r.First.AsSlice()
		for i := p.Bits(); i < r.First.BitLen(); i++ {
			b[i/8] |= 0x80 >> (i % 8)
		}
		r.Last, _ = netip.AddrFromSlice(b)
	} else {
		r.First, err = netip.ParseAddr(text)
		r.Last = r.First
	}
	switch {
	case err != nil:
		return AddressRange{}, fmt.Errorf("%q is not a range such as 192.168.1.240-192.168.1.250, a network or an address", text)
	case r.First.Is4() != r.Last.Is4() || r.First.Zone()+r.Last.Zone() != "" || r.First.Is4In6() || r.Last.Is4In6():
		return AddressRange{}, fmt.Errorf("%q: both ends must be IPv4 or both IPv6, without a zone", text)
	case r.First.IsLinkLocalUnicast() || r.First.IsMulticast():
		return AddressRange{}, fmt.Errorf("%q is not for machines beyond one link: take unique local or global addresses", text)
	case r.Last.Less(r.First):
		return AddressRange{}, fmt.Errorf("%q ends before it begins", text)
	}
	return r, nil
}

// Family is that of the addresses.
func (r AddressRange) Family() corev1.IPFamily { return familyOf(r.First) }

func familyOf(a netip.Addr) corev1.IPFamily {
	if a.Is4() {
		return corev1.IPv4Protocol
	}
	return corev1.IPv6Protocol
}

// Contains tells whether the address is in the range.
func (r AddressRange) Contains(a netip.Addr) bool { return !a.Less(r.First) && !r.Last.Less(a) }

// grant is what a Service gets: an address of each of its families, or a reason why not.
type grant struct {
	addrs   []netip.Addr // in the order of the Service's families; nil: none
	refusal string       // "" where none is wanted
}

// assign gives each Service that asks for them addresses of the pool: one of each of its
// families that the pool has.
func assign(services []*corev1.Service, pool []AddressRange) map[*corev1.Service]grant {
	byFamily := map[corev1.IPFamily][]AddressRange{}
	for _, r := range pool {
		byFamily[r.Family()] = append(byFamily[r.Family()], r)
	}
	shares := map[corev1.IPFamily]map[*corev1.Service]share{}
	for family, ranges := range byFamily {
		of := slices.DeleteFunc(slices.Clone(services), func(s *corev1.Service) bool {
			return !slices.Contains(s.Spec.IPFamilies, family) || !possible(s, pool)
		})
		shares[family] = assignOf(family, of, ranges)
	}
	out := map[*corev1.Service]grant{}
	for _, s := range services {
		if !balanced(s) {
			continue
		}
		var g grant
		for _, family := range s.Spec.IPFamilies {
			v := shares[family][s]
			if v.addr.IsValid() {
				g.addrs = append(g.addrs, v.addr)
			}
			g.refusal = cmp.Or(g.refusal, v.refusal)
		}
		if !possible(s, pool) {
			g = grant{refusal: fmt.Sprintf("loadBalancerIP %s is not among the cluster's load-balancer-addresses of the Service's IP families", requested(s))}
		}
		if len(g.addrs) == 0 {
			g.refusal = cmp.Or(g.refusal, fmt.Sprintf("the cluster's load-balancer-addresses have none of the Service's IP families (%v)", s.Spec.IPFamilies))
		}
		out[s] = g
	}
	return out
}

// possible: the address that the Service asks for by name is one that it could get; who gets
// it is another matter. A Service for which it is not gets none, of no family.
func possible(s *corev1.Service, pool []AddressRange) bool {
	if requested(s) == "" {
		return true
	}
	a, err := netip.ParseAddr(requested(s))
	return err == nil && contains(pool, a) && slices.Contains(s.Spec.IPFamilies, familyOf(a))
}

// share is a grant of one family.
type share struct {
	addr    netip.Addr // invalid: none
	refusal string
}

// assignOf gives the Services, which are all of the family and wish for nothing impossible,
// an address of it. Who has one keeps it, and the older Service goes first.
func assignOf(family corev1.IPFamily, services []*corev1.Service, pool []AddressRange) map[*corev1.Service]share {
	services = slices.SortedFunc(slices.Values(services), func(a, b *corev1.Service) int {
		return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	taken := map[netip.Addr]*corev1.Service{}
	out := map[*corev1.Service]share{}
	wish := func(s *corev1.Service) netip.Addr {
		if a, err := netip.ParseAddr(requested(s)); err == nil && familyOf(a) == family {
			return a
		}
		return netip.Addr{}
	}
	// First those that have what they ask for, then who asks for one by name, then the rest.
	for _, pass := range []func(*corev1.Service) bool{
		func(s *corev1.Service) bool {
			a := granted(s, family)
			return contains(pool, a) && (!wish(s).IsValid() || wish(s) == a)
		},
		func(s *corev1.Service) bool { return wish(s).IsValid() },
		func(*corev1.Service) bool { return true },
	} {
		for _, s := range services {
			if _, done := out[s]; done || !balanced(s) || !pass(s) {
				continue
			}
			v := choose(wish(s), granted(s, family), pool, taken)
			if out[s] = v; v.addr.IsValid() {
				taken[v.addr] = s
			}
		}
	}
	return out
}

// choose is the address for a Service that wishes for that one of the pool (invalid: for
// any) and has had has.
func choose(wish, has netip.Addr, pool []AddressRange, taken map[netip.Addr]*corev1.Service) share {
	if wish.IsValid() {
		if s := taken[wish]; s != nil {
			return share{refusal: fmt.Sprintf("loadBalancerIP %s belongs to service %s/%s", wish, s.Namespace, s.Name)}
		}
		return share{addr: wish}
	}
	if contains(pool, has) && taken[has] == nil {
		return share{addr: has}
	}
	for _, r := range pool {
		for a := r.First; r.Contains(a); a = a.Next() {
			if taken[a] == nil {
				return share{addr: a}
			}
		}
	}
	return share{refusal: fmt.Sprintf("all %d load-balancer-addresses of its IP family are in use: add some, or delete a Service of type LoadBalancer", len(taken))}
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

// granted is the address of the family that the Service has now.
func granted(s *corev1.Service, family corev1.IPFamily) netip.Addr {
	for _, in := range s.Status.LoadBalancer.Ingress {
		if a, err := netip.ParseAddr(in.IP); err == nil && familyOf(a) == family {
			return a
		}
	}
	return netip.Addr{}
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
	e.loop(ctx, w, nil, rareTick, func(ctx context.Context) error {
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
		if err := b.write(ctx, s, v.addrs); err != nil {
			errs = append(errs, fmt.Errorf("write address of service %s: %w", key, err))
		}
	}
	b.said = said
	return errors.Join(errs...)
}

// write brings the status to the addresses.
func (b *balancer) write(ctx context.Context, s *corev1.Service, addrs []netip.Addr) error {
	var want []corev1.LoadBalancerIngress
	for _, addr := range addrs {
		mode := corev1.LoadBalancerIPModeVIP
		want = append(want, corev1.LoadBalancerIngress{IP: addr.String(), IPMode: &mode})
	}
	if slices.EqualFunc(s.Status.LoadBalancer.Ingress, addrs, func(in corev1.LoadBalancerIngress, a netip.Addr) bool { return in.IP == a.String() }) {
		return nil
	}
	s = s.DeepCopy()
	s.Status.LoadBalancer.Ingress = want
	_, err := b.client.CoreV1().Services(s.Namespace).UpdateStatus(ctx, s, metav1.UpdateOptions{})
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil // it has changed, and so it comes again
	}
	for _, addr := range addrs {
		if err == nil {
			b.events.Eventf(s, corev1.EventTypeNormal, "AddressGiven", "the peers answer for %s on the LAN", addr)
		}
	}
	return err
}
