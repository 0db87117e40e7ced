package network_test

import (
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// A LoadBalancer's addresses answer on the LAN, each at one peer, and move with their cables.
func TestAddressesOnTheLAN(t *testing.T) {
	for _, backend := range []string{"wireguard", "vxlan", "direct"} {
		t.Run(backend, func(t *testing.T) { addressesOnTheLAN(t, newLabOf(t, 3, backend, "46")) })
	}
}

// moves is how long an address may be where it was that moves within seconds, on a machine that does much else.
const moves = 15 * time.Second

func addressesOnTheLAN(t *testing.T, l *lab) {
	h1, h2, outside := l.hosts[0], l.hosts[1], l.hosts[2]
	h1.up()
	h2.up()
	l.peers()
	a, c := h1.pod("a"), h2.pod("c")
	services, slices := l.hello(a, c)
	services[0].Spec.Type = corev1.ServiceTypeLoadBalancer
	var ips []string
	for i := range 6 {
		ips = append(ips, fmt.Sprintf("192.168.77.%d", 240+i), fmt.Sprintf("fd77::f%d", i))
	}
	for _, ip := range ips {
		services[0].Status.LoadBalancer.Ingress = append(services[0].Status.LoadBalancer.Ingress, corev1.LoadBalancerIngress{IP: ip})
	}
	port := func(ip string, port int) string { return net.JoinHostPort(ip, fmt.Sprint(port)) }
	l.put(services, slices)
	// at is where the machine outside believes an address to be.
	at := func(ip string) string {
		neigh := outside.run("ip", "neigh", "show", ip)
		for _, m := range l.hosts {
			// NAME STATE MAC FLAGS; sysfs shows another namespace.
			if mac := strings.Fields(m.run("ip", "-br", "link", "show", "eth0"))[2]; strings.Contains(neigh, mac) {
				return m.name
			}
		}
		return neigh
	}
	answers := func(ip string, pods ...string) func() string {
		return func() string { return want(outside.dial("tcp", port(ip, 80), 20), pods...) }
	}
	owners := map[string]string{}
	for _, ip := range ips {
		eventually(t, patience, answers(ip, "a", "c"))
		owners[ip] = at(ip)
	}
	for i := range 2 { // of each family
		spread := map[string]bool{}
		for j := i; j < len(ips); j += 2 {
			spread[owners[ips[j]]] = true
		}
		if !spread["h1"] || !spread["h2"] {
			t.Errorf("the addresses are not spread: %v", owners)
		}
	}
	// Inside they answer as well, and what is no port of the Service is refused, not sent on.
	for _, ip := range ips[:2] {
		eventually(t, patience, func() string { return want(a.dial("tcp", port(ip, 80), enough), "a", "c") })
		only(t, outside.dial("tcp", port(ip, 81), 1), refused)
		only(t, h1.dial("tcp", port(ip, 81), 1), refused)
	}
	// So do the Service's own addresses, and the machines' for its NodePort, in both families.
	for _, ip := range services[0].Spec.ClusterIPs {
		eventually(t, patience, func() string { return want(a.dial("tcp", port(ip, 80), enough), "a", "c") })
		eventually(t, patience, func() string { return want(h1.dial("udp", port(ip, 53), enough), "a", "c") })
	}
	for _, m := range []*machine{h1, h2} {
		for _, ip := range []string{m.addr.String(), m.other.String()} {
			eventually(t, patience, func() string { return want(outside.dial("tcp", port(ip, 30080), enough), "a", "c") })
		}
	}

	t.Run("a peer dies", func(t *testing.T) {
		l.ip("-n", l.name+"-lan", "link", "set", "l1", "down")
		h2.ask(request{Verb: "dead", Dead: []string{"h1"}})
		deadline := time.Now().Add(moves)
		for _, ip := range ips {
			// The neighbour's table changes by the announcement alone: nobody asks here.
			eventually(t, time.Until(deadline), func() string {
				if got := at(ip); got != "h2" {
					return ip + " is at " + got
				}
				return ""
			})
		}
		for _, ip := range ips {
			eventually(t, patience, func() string { return want(outside.dial("tcp", port(ip, 80), 8, briefly), "c") })
			eventually(t, patience, func() string { return want(outside.dial("udp", port(ip, 53), 8, briefly), "c") })
		}
		l.ip("-n", l.name+"-lan", "link", "set", "l1", "up")
		h2.ask(request{Verb: "dead"})
		h1.ask(request{Verb: "dead"})
		for _, ip := range ips {
			eventually(t, patience, func() string {
				if got := at(ip); got != owners[ip] {
					return ip + " is at " + got + ", was at " + owners[ip]
				}
				return ""
			})
			eventually(t, patience, answers(ip, "a", "c"))
		}
	})
	t.Run("local policy", func(t *testing.T) {
		_, slices := l.hello(c)
		services[0].Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
		l.put(services, slices)
		for _, ip := range ips {
			eventually(t, patience, func() string {
				if got := at(ip); got != "h2" {
					return ip + " is at " + got
				}
				return ""
			})
			eventually(t, patience, func() string {
				got := outside.dial("tcp", port(ip, 80), 1)
				if got["c "+outside.at(ip)] != 1 {
					return fmt.Sprint(got)
				}
				return ""
			})
		}
	})
	t.Run("the Service goes", func(t *testing.T) {
		services[0].Status.LoadBalancer.Ingress = nil
		l.put(services, slices)
		eventually(t, patience, func() string {
			outside.run("ip", "neigh", "flush", "dev", "eth0")
			return part(fmt.Sprint(outside.dial("tcp", port(ips[0], 80), 1), outside.dial("tcp", port(ips[1], 80), 1)), "error: ") // nobody answers
		})
	})
}
