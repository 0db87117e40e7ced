package network_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

// SCTP's one-to-one sockets are used as those of TCP (RFC 6458, section 4); package net takes
// them for such.

// sctpSocket fails with errNoSCTP where the kernel has none.
func sctpSocket(family int) (int, error) {
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_SCTP)
	if errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.ESOCKTNOSUPPORT) {
		err = errNoSCTP
	}
	return fd, err
}

var errNoSCTP = errors.New("this kernel has no SCTP")

func listenSCTP(port int) (net.Listener, error) {
	fd, err := sctpSocket(unix.AF_INET6) // for both families
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "sctp")
	defer f.Close()
	if err := unix.Bind(fd, &unix.SockaddrInet6{Port: port}); err != nil {
		return nil, fmt.Errorf("bind: %w", err)
	}
	if err := unix.Listen(fd, 128); err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	return net.FileListener(f)
}

func dialSCTP(target string, timeout time.Duration) (net.Conn, error) {
	at, err := netip.ParseAddrPort(target)
	if err != nil {
		return nil, err
	}
	family, to := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Port: int(at.Port()), Addr: at.Addr().As16()})
	if at.Addr().Is4() {
		family, to = unix.AF_INET, &unix.SockaddrInet4{Port: int(at.Port()), Addr: at.Addr().As4()}
	}
	fd, err := sctpSocket(family)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "sctp")
	defer f.Close()
	wait := unix.NsecToTimeval(timeout.Nanoseconds())
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &wait); err != nil {
		return nil, fmt.Errorf("set timeout: %w", err)
	}
	if err := unix.Connect(fd, to); err != nil {
		return nil, fmt.Errorf("connect: %w", err)
	}
	return net.FileConn(f)
}

// Associations of SCTP with a Service come to each of its pods, from a pod, a peer and the LAN.
func TestSCTP(t *testing.T) {
	fd, err := sctpSocket(unix.AF_INET)
	if errors.Is(err, errNoSCTP) {
		t.Skip(err) // services.TestSCTPIsTranslated needs none
	}
	if err := errors.Join(err, unix.Close(fd)); err != nil {
		t.Fatal(err)
	}
	everywhere(t, 3, func(t *testing.T, l *lab) {
		h1, h2, outside := l.hosts[0], l.hosts[1], l.hosts[2]
		h1.up()
		h2.up()
		l.peers()
		a, b, client := h1.pod("a"), h2.pod("b"), h1.pod("client")
		services, slices := l.hello(a, b)
		services[0].Spec.Ports = append(services[0].Spec.Ports, corev1.ServicePort{Name: "signals", Port: 2905, NodePort: 30905, Protocol: corev1.ProtocolSCTP})
		for _, s := range slices {
			name, proto, port := "signals", corev1.ProtocolSCTP, int32(8080)
			s.Ports = append(s.Ports, discoveryv1.EndpointPort{Name: &name, Protocol: &proto, Port: &port})
		}
		l.put(services, slices)
		for _, ip := range services[0].Spec.ClusterIPs {
			eventually(t, patience, func() string { return want(client.dial("sctp", on(ip, 2905), enough), "a", "b") })
			for _, c := range []struct {
				from string
				got  map[string]int
			}{
				{"a peer", h1.dial("sctp", on(ip, 2905), enough)},
				{"the LAN", outside.dial("sctp", on(h1.at(ip), 30905), enough)},
			} {
				if got := want(c.got, "a", "b"); got != "" {
					t.Errorf("%s from %s: %s", ip, c.from, got)
				}
			}
			only(t, client.dial("sctp", on(b.at(ip), 8080), 1), "b "+client.at(ip))
		}
	})
}
