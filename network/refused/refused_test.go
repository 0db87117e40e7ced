package refused

import (
	"bytes"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
	"sigs.k8s.io/knftables"

	"github.com/rundigitalplatform/rookery/network/nft"
	"github.com/rundigitalplatform/rookery/network/nft/nfttest"
)

// What the kernel notes is told once for each pod and reason, with names, and counted.
func TestRefusalsAreToldOnce(t *testing.T) {
	nfttest.Namespace(t)
	lo, err := netlink.LinkByName("lo")
	must(t, err)
	must(t, netlink.LinkSetUp(lo))
	families := []knftables.Family{knftables.IPv4Family, knftables.IPv6Family}
	for _, family := range families {
		table, err := nft.Open(family, "rookery", slog.New(slog.DiscardHandler))
		must(t, err)
		s := nft.NewState()
		for _, r := range []Reason{Egress, Source} {
			r.Add(s, family)
		}
		hook := &nft.Hook{Type: knftables.FilterType, Hook: knftables.InputHook, Priority: "0"}
		s.Chains["in"] = nft.Chain{Hook: hook, Rules: append(append(Egress.Rules(family), Source.Rules(family)...), "drop")}
		must(t, table.Set(t.Context(), "s", s))
	}
	pods := cache.NewIndexer(cache.MetaNamespaceKeyFunc, cache.Indexers{})
	must(t, pods.Add(&corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "a", UID: "lo"},
		Status:     corev1.PodStatus{PodIPs: []corev1.PodIP{{IP: "127.0.0.1"}, {IP: "::1"}}},
	}))
	var log bytes.Buffer
	w := New(Config{
		Families: families, Pods: corelisters.NewPodLister(pods), Device: func(uid string) string { return uid },
		Counts: func(family knftables.Family, set string) ([]nft.Count, error) {
			return nft.Counts(family, "rookery", set)
		},
		Log: slog.New(slog.NewTextHandler(&log, nil)),
	})
	sent := uint64(0) // of each family
	send := func() {
		t.Helper()
		sent++
		for domain, to := range map[int]unix.Sockaddr{
			unix.AF_INET:  &unix.SockaddrInet4{Port: 99, Addr: [4]byte{127, 0, 0, 1}},
			unix.AF_INET6: &unix.SockaddrInet6{Port: 99, Addr: [16]byte(net.IPv6loopback)},
		} {
			fd, err := unix.Socket(domain, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
			must(t, err)
			must(t, unix.Sendto(fd, []byte("hello"), 0, to))
			must(t, unix.Close(fd))
		}
		// The kernel may take its time to look at them.
		deadline := time.Now().Add(time.Minute)
		for _, family := range families {
			for _, r := range []Reason{Egress, Source} {
				for noted := uint64(0); noted != sent; time.Sleep(time.Millisecond) {
					counts, err := w.cfg.Counts(family, r.Set())
					must(t, err)
					noted = 0
					for _, c := range counts {
						noted += c.Packets
					}
					if noted != sent && time.Now().After(deadline) {
						t.Fatalf("%d packets are noted for %s of %s, want %d", noted, r, family, sent)
					}
				}
			}
		}
	}
	now := time.Now()
	if got := w.read(now); got[Egress] != 0 || log.Len() > 0 {
		t.Errorf("before anything was sent: %v, %s", got, log.String())
	}
	send()
	if got := w.read(now); got[Egress] != 2 || got[Source] != 2 {
		t.Errorf("after a packet of each family: %v", got)
	}
	said := log.String()
	if strings.Count(said, "pod=shop/a") != 2 || strings.Count(said, "level=WARN") != 2 || !strings.Contains(said, "port=99/udp") {
		t.Errorf("told: %s", said)
	}
	log.Reset()
	send()
	if got := w.read(now.Add(time.Minute)); got[Egress] != 4 || log.Len() > 0 {
		t.Errorf("it goes on: %v, %s", got, log.String())
	}
	send()
	if got := w.read(now.Add(2 * time.Hour)); got[Egress] != 6 || !strings.Contains(log.String(), "packets=1") {
		t.Errorf("hours later: %v, %s", got, log.String())
	}
	if n := testutil.CollectAndCount(w); n != len(Reasons()) {
		t.Errorf("%d metrics", n)
	}
}

// A set that could not be read once is not counted anew.
func TestAFailedReadingForgetsNothing(t *testing.T) {
	var fails error
	w := New(Config{
		Families: []knftables.Family{knftables.IPv4Family}, Pods: corelisters.NewPodLister(cache.NewIndexer(cache.MetaNamespaceKeyFunc, cache.Indexers{})),
		Device: func(uid string) string { return uid },
		Counts: func(_ knftables.Family, set string) ([]nft.Count, error) {
			if set != Egress.Set() {
				return nil, nil
			}
			return []nft.Count{{Key: append([]byte{10, 42, 0, 1, 10, 42, 0, 2}, unix.IPPROTO_ICMP, 0, 0, 0, 8, 0, 0, 0), Packets: 7}}, fails
		},
		Log: slog.New(slog.DiscardHandler),
	})
	for _, err := range []error{nil, netlink.ErrDumpInterrupted, nil} {
		fails = err
		if got := w.read(time.Now()); got[Egress] != 7 {
			t.Errorf("%d packets after %v", got[Egress], err)
		}
	}
}

// ICMP has no ports; what the rules note in their place is its type.
func TestParse(t *testing.T) {
	key := append([]byte{10, 42, 0, 1, 10, 42, 0, 2}, unix.IPPROTO_ICMP, 0, 0, 0, 8, 0, 0, 0)
	f, ok := parse(Egress, knftables.IPv4Family, key)
	if !ok || f.service() != "icmp type 8" || f.from.String() != "10.42.0.1" || f.to.String() != "10.42.0.2" {
		t.Error(f, ok)
	}
	for n := range key {
		if _, ok := parse(Ingress, knftables.IPv4Family, key[:n]); ok {
			t.Errorf("%d bytes were taken for a flow", n)
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
