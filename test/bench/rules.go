package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/utils/ptr"

	"github.com/rundigitalplatform/rookery/test/lab"
)

// measureRules changes an endpoint and waits until the kernel of another peer has its rule, with
// more and more Services in the cluster.
func measureRules(ctx context.Context, b *bench) (figures []figure, err error) {
	// A cluster of its own, which is gone afterwards: to delete so many objects takes minutes.
	dir := fmt.Sprintf("/tmp/rookery-rules-%d", os.Getpid())
	l, err := lab.Up(ctx, lab.Options{Dir: dir, Peers: 2, Bin: b.bin}, b.say)
	defer func() { err = errors.Join(err, lab.Down(context.Background(), dir)) }()
	if err != nil {
		return nil, err
	}
	b = &bench{bin: b.bin, lab: l, say: b.say}
	api, err := l.API()
	if err != nil {
		return nil, err
	}
	pids, err := b.daemons()
	if err != nil {
		return nil, err
	}
	memory := func() (float64, error) {
		u, err := lab.UsageOf(pids["h2"])
		return megabytes(u.Resident), err
	}
	before, err := memory()
	if err != nil {
		return nil, err
	}
	have, number, first, firstMore := 0, 0, 0.0, 0.0
	for _, n := range []int{10, 1000, 5000} {
		began := time.Now()
		if err := balanced(ctx, api, have, n); err != nil {
			return nil, err
		}
		have = n
		b.say(fmt.Sprintf("%d Services are there after %s", n, time.Since(began).Round(time.Second)))
		took, err := b.changes(ctx, api, n, &number, false)
		if err != nil {
			return nil, err
		}
		more, err := b.changes(ctx, api, n, &number, true)
		if err != nil {
			return nil, err
		}
		rss, err := memory()
		if err != nil {
			return nil, err
		}
		if have == 10 {
			first, firstMore = took, more
		}
		figures = append(figures,
			figure{name: fmt.Sprintf("rules/endpoint-%d", n), value: took * 1e3, unit: "ms", yardstick: "from the API to the kernel"},
			figure{name: fmt.Sprintf("rules/one-more-%d", n), value: more * 1e3, unit: "ms", yardstick: "from the API to the kernel"},
			figure{name: fmt.Sprintf("rules/memory-%d", n), value: rss, unit: "MB", yardstick: fmt.Sprintf("%.0f before", before)})
		if n > 10 {
			figures = append(figures,
				figure{name: fmt.Sprintf("rules/endpoint-%d-ratio", n), value: took / first, unit: "x", yardstick: "10 Services", budget: 1.5},
				figure{name: fmt.Sprintf("rules/one-more-%d-ratio", n), value: more / firstMore, unit: "x", yardstick: "10 Services", budget: 1.5})
		}
	}
	return figures, nil
}

// sliceOf is the one of a Service, whose endpoints are these and one more.
func sliceOf(service int, at ...string) *discoveryv1.EndpointSlice {
	name := fmt.Sprintf("rules-%d", service)
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Name: name, Labels: map[string]string{discoveryv1.LabelServiceName: name}},
		AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Name: ptr.To("http"), Port: ptr.To[int32](80)}},
	}
	for _, ip := range append(at, fmt.Sprintf("10.42.200.%d", 1+service%250)) {
		slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{Addresses: []string{ip}})
	}
	return slice
}

// firstOf is an address for the first endpoint of a Service.
func firstOf(service int) string { return fmt.Sprintf("10.42.%d.%d", 201+service%50, 1+service/50) }

// balanced makes Services from the number first up to the number last, with two endpoints each.
func balanced(ctx context.Context, api kubernetes.Interface, first, last int) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(16)
	for i := first; i < last; i++ {
		group.Go(func() error {
			svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("rules-%d", i)}, Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Name: "http", Port: 80}}}}
			_, err := api.CoreV1().Services(metav1.NamespaceDefault).Create(ctx, svc, metav1.CreateOptions{})
			if err == nil {
				_, err = api.DiscoveryV1().EndpointSlices(metav1.NamespaceDefault).Create(ctx, sliceOf(i, firstOf(i)), metav1.CreateOptions{})
			}
			if apierrors.IsAlreadyExists(err) {
				return nil
			}
			return err
		})
	}
	return group.Wait()
}

// changes is the median time from an endpoint's change to its rule in the kernel of a peer, in seconds.
// The endpoint takes the place of another, or is one more. The kernel tells of rules itself, so
// nobody polls. number counts changes: each has an address of its own.
func (b *bench) changes(ctx context.Context, api kubernetes.Interface, services int, number *int, more bool) (float64, error) {
	rules, err := b.watchRules("h2")
	if err != nil {
		return 0, err
	}
	defer rules.Close()
	var took []float64
	change := func(within time.Duration) (time.Duration, error) {
		*number++
		at := fmt.Sprintf("10.42.199.%d", *number)
		slice := sliceOf(*number%services, at)
		if more {
			slice = sliceOf(*number%services, at, firstOf(*number%services))
		}
		began := time.Now()
		if _, err := api.DiscoveryV1().EndpointSlices(metav1.NamespaceDefault).Update(ctx, slice, metav1.UpdateOptions{}); err != nil {
			return 0, err
		}
		if err := rules.wait(netip.MustParseAddr(at), began.Add(within)); err != nil {
			return 0, err
		}
		return time.Since(began), nil
	}
	// The first ones wait until the rules of all Services are written and the monitor listens.
	if err := b.until(ctx, 2*time.Minute, func() error { _, err := change(20 * time.Second); return err }); err != nil {
		return 0, err
	}
	for range 7 {
		if err := b.settle(ctx, 500*time.Millisecond); err != nil {
			return 0, err
		}
		d, err := change(time.Minute)
		if err != nil {
			return 0, err
		}
		took = append(took, d.Seconds())
	}
	slices.Sort(took)
	return took[len(took)/2], nil
}

// rules are the kernel's words on changes of nftables rules in a host.
type rules struct{ *nl.NetlinkSocket }

func (b *bench) watchRules(host string) (rules, error) {
	ns, err := netns.GetFromPath("/run/netns/" + b.lab.ID + "-" + host)
	if err != nil {
		return rules{}, err
	}
	defer ns.Close()
	s, err := nl.SubscribeAt(ns, netns.None(), unix.NETLINK_NETFILTER, unix.NFNLGRP_NFTABLES)
	if err != nil {
		return rules{}, fmt.Errorf("listen to nftables of %s: %w", host, err)
	}
	return rules{s}, s.SetReceiveTimeout(&unix.Timeval{Sec: 1})
}

// wait returns when a rule or an element with that address is there.
func (r rules) wait(ip netip.Addr, until time.Time) error {
	for time.Now().Before(until) {
		// A pause is no error, and what was too much at once is no loss: the next change is told.
		messages, _, err := r.Receive()
		if err != nil && !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.ENOBUFS) && !errors.Is(err, unix.EINTR) {
			return err
		}
		for _, m := range messages {
			if bytes.Contains(m.Data, ip.AsSlice()) {
				return nil
			}
		}
	}
	return fmt.Errorf("no rule with %s", ip)
}
