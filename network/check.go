package network

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"runtime"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/rundigitalplatform/rookery/network/nft"
)

// Feature is one thing that the machine must be able to do.
type Feature struct {
	Name     string
	OK       bool
	Required bool   // false: something else stands in for it, as Detail says
	Detail   string // what was found
	Cure     string // what to do; empty if OK
}

// Check probes what the network needs of the kernel, in a network namespace of
// its own that is gone afterwards, so that nothing of the machine changes. It needs root.
func Check(ctx context.Context) []Feature {
	out := make(chan []Feature, 1)
	go onOwnThread(func() {
		forwarding := checkForwarding() // of the machine, so before leaving it
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			out <- []Feature{forwarding, {Name: "namespace", Required: true, Detail: "a network namespace cannot be made: " + err.Error(), Cure: "run as root"}}
			return
		}
		out <- append([]Feature{forwarding}, probes(ctx)...)
	})
	return <-out
}

// onOwnThread runs f on a thread that ends with the calling goroutine, so that f may
// leave it in another namespace. It is never the main thread: that one does not end, and
// it is what others see of this process in /proc.
func onOwnThread(f func()) {
	runtime.LockOSThread()
	if unix.Gettid() != unix.Getpid() {
		f()
		return // locked: the thread ends with the goroutine
	}
	done := make(chan struct{})
	go func() { // cannot be the main thread as well, which is held here
		defer close(done)
		onOwnThread(f)
	}()
	<-done
	runtime.UnlockOSThread()
}

func probes(ctx context.Context) []Feature {
	attrs := func() netlink.LinkAttrs { return netlink.LinkAttrs{Name: "rookery-probe", TxQLen: -1} }
	veth := netlink.NewVeth(attrs())
	veth.PeerName = "rookery-peer"
	return []Feature{
		checkNFT(ctx),
		checkLink("veth", veth, true, "", "load the kernel module veth: modprobe veth"),
		checkLink("bridge", &netlink.Bridge{LinkAttrs: attrs()}, true, "", "load the kernel module bridge: modprobe bridge"),
		checkTUN(),
		checkLink("vxlan", &netlink.Vxlan{LinkAttrs: attrs(), VxlanId: 1, Port: vxlanProbePort}, false,
			"needed by the vxlan backend only", "load the kernel module vxlan (modprobe vxlan), or stay with wireguard"),
		checkLink("wireguard", &netlink.Wireguard{LinkAttrs: attrs()}, false,
			"the daemon runs WireGuard itself, which is slower", "load the kernel module wireguard: modprobe wireguard"),
		checkConntrack(),
	}
}

const vxlanProbePort = 4789

func checkNFT(ctx context.Context) Feature {
	f := Feature{Name: "nf_tables", Required: true}
	kernel, err := newNFT()
	if err == nil {
		// The rules of a peer without pods use nearly everything there is to use.
		rules := podRules(Family{
			PodCIDR: netip.MustParsePrefix("10.42.0.0/24"), ClusterCIDR: netip.MustParsePrefix("10.42.0.0/16"), ServiceCIDR: netip.MustParsePrefix("10.43.0.0/16"),
		}, nil, nil)
		err = nft.New(kernel, slog.New(slog.DiscardHandler)).Set(ctx, podsSection, rules)
	}
	if err != nil {
		f.Detail, f.Cure = oneLine(err), "install the package nftables (nft 1.0.1 or newer) on a kernel with nf_tables and NAT: modprobe nf_tables nft_chain_nat nft_masq nft_fib_ipv4 nft_numgen nft_reject_ipv4"
		return f
	}
	f.OK, f.Detail = true, "tables, sets, NAT and tracking work"
	return f
}

func checkLink(name string, link netlink.Link, required bool, otherwise, cure string) Feature {
	f := Feature{Name: name, Required: required}
	err := netlink.LinkAdd(link)
	if err == nil {
		err = netlink.LinkDel(link)
	}
	if err != nil {
		f.Detail, f.Cure = strings.TrimSuffix(oneLine(err)+"; "+otherwise, "; "), cure
		return f
	}
	f.OK, f.Detail = true, "devices can be made"
	return f
}

func checkTUN() Feature {
	f := Feature{Name: "tun", Cure: "load the kernel module tun (modprobe tun), or make /dev/net/tun available; not needed with WireGuard in the kernel"}
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		f.Detail = "open /dev/net/tun: " + err.Error()
		return f
	}
	defer unix.Close(fd)
	req, err := unix.NewIfreq("rookery-probe")
	if err == nil {
		req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
	}
	if err != nil {
		f.Detail = "make a TUN device: " + err.Error()
		return f
	}
	return Feature{Name: f.Name, OK: true, Detail: "devices can be made"}
}

func checkConntrack() Feature {
	f := Feature{Name: "conntrack"}
	if _, err := netlink.ConntrackTableList(netlink.ConntrackTable, unix.AF_INET); err != nil {
		f.Detail = oneLine(err) + "; connections to a dead peer wait for their own timeouts"
		f.Cure = "load the kernel module nf_conntrack_netlink: modprobe nf_conntrack_netlink"
		return f
	}
	f.OK, f.Detail = true, "connections can be listed and ended"
	return f
}

func checkForwarding() Feature {
	const path = "/proc/sys/net/ipv4/ip_forward"
	f := Feature{Name: "ip_forward", Required: true}
	have, err := os.ReadFile(path)
	if err != nil {
		f.Detail, f.Cure = oneLine(err), "mount /proc"
		return f
	}
	if strings.TrimSpace(string(have)) == "1" {
		f.OK, f.Detail = true, "on"
		return f
	}
	// Writing the value that it has changes nothing, and shows whether it could be changed.
	if err := os.WriteFile(path, have, 0o644); err != nil {
		f.Detail, f.Cure = fmt.Sprintf("off, and it cannot be turned on: %v", rootCause(err)), "sysctl -w net.ipv4.ip_forward=1"
		return f
	}
	f.OK, f.Detail = true, "off now; it is turned on at the start"
	return f
}

func rootCause(err error) error {
	for errors.Unwrap(err) != nil {
		err = errors.Unwrap(err)
	}
	return err
}

func oneLine(err error) string { return strings.Join(strings.Fields(err.Error()), " ") }
