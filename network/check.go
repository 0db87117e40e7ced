package network

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"sigs.k8s.io/knftables"

	"github.com/rundigitalplatform/rookery/network/conntrack"
	"github.com/rundigitalplatform/rookery/network/nft"
	"github.com/rundigitalplatform/rookery/network/overlay"
	"github.com/rundigitalplatform/rookery/network/sysctl"
)

// Feature is one thing that the machine must be able to do.
type Feature struct {
	Name     string
	OK       bool
	Required bool   // false: something else stands in for it, as Detail says
	Detail   string // what was found
	Cure     string // what to do; empty if OK
}

// Check probes what the network needs of the kernel, for pods of those ranges (the cluster's,
// one of each IP family that it has), in a network namespace of its own that is gone
// afterwards, so that nothing of the machine changes; and whether other programs' rules on
// the machine refuse packets of pods; the ports are those of [CheckFirewall]. It needs root.
func Check(ctx context.Context, pods []netip.Prefix, ports ...string) []Feature {
	out := make(chan []Feature, 1)
	go onOwnThread(func() {
		var all []Feature
		var families []knftables.Family
		for _, p := range pods {
			f := nft.FamilyOf(p.Addr())
			families = append(families, f)
			all = append(all, checkForwarding(f), CheckFirewall(ctx, p, ports...)) // of the machine, so before leaving it
		}
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			out <- append(all, Feature{Name: "namespace", Required: true, Detail: "a network namespace cannot be made: " + err.Error(), Cure: "run as root"})
			return
		}
		for _, f := range families {
			all = append(all, checkNFT(ctx, f), checkConntrack(f))
		}
		out <- append(all, checkDevices()...)
	})
	return <-out
}

func checkDevices() []Feature {
	attrs := func() netlink.LinkAttrs { return netlink.LinkAttrs{Name: "rookery-probe", TxQLen: -1} }
	veth := netlink.NewVeth(attrs())
	veth.PeerName = "rookery-peer"
	return []Feature{
		checkLink("veth", veth, true, "", "load the kernel module veth: modprobe veth"),
		checkLink("bridge", &netlink.Bridge{LinkAttrs: attrs()}, true, "", "load the kernel module bridge: modprobe bridge"),
		checkTUN(),
		checkLink("vxlan", &netlink.Vxlan{LinkAttrs: attrs(), VxlanId: 1, Port: overlay.VXLANPort}, false,
			"needed by the vxlan backend only", "load the kernel module vxlan (modprobe vxlan), or stay with wireguard"),
		checkLink("wireguard", &netlink.Wireguard{LinkAttrs: attrs()}, false,
			"WireGuard runs as a process of its own, which is slower", "load the kernel module wireguard: modprobe wireguard"),
	}
}

func checkNFT(ctx context.Context, family knftables.Family) Feature {
	f := Feature{Name: "nf_tables " + string(family), Required: true}
	table, err := openTable(family, slog.New(slog.DiscardHandler))
	if err == nil {
		// The rules of a peer without pods use nearly everything there is to use.
		ranges := Family{
			PodCIDR: netip.MustParsePrefix("10.42.0.0/24"), ClusterCIDR: netip.MustParsePrefix("10.42.0.0/16"), ServiceCIDR: netip.MustParsePrefix("10.43.0.0/16"),
		}
		if family == knftables.IPv6Family {
			ranges = Family{
				PodCIDR: netip.MustParsePrefix("fd42::/64"), ClusterCIDR: netip.MustParsePrefix("fd42::/56"), ServiceCIDR: netip.MustParsePrefix("fd43::/112"),
			}
		}
		err = table.Set(ctx, podsSection, podRules(ranges, nil, nil, nil))
	}
	if err != nil {
		fib := "nft_fib_ipv4"
		if family == knftables.IPv6Family {
			fib = "nft_fib_ipv6"
		}
		f.Detail, f.Cure = oneLine(err), "install the package nftables (nft 1.0.1 or newer) on a kernel with nf_tables and NAT: modprobe nf_tables nft_chain_nat nft_masq "+fib+" nft_numgen nft_reject_inet"
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

func checkConntrack(family knftables.Family) Feature {
	f := Feature{Name: "conntrack " + string(family)}
	// It deletes nothing, but asks the kernel for the same list.
	if _, err := conntrack.Delete(family, none{}); err != nil {
		f.Detail = oneLine(err) + "; connections to a dead peer wait for their own timeouts"
		f.Cure = "load the kernel module nf_conntrack_netlink: modprobe nf_conntrack_netlink"
		return f
	}
	f.OK, f.Detail = true, "connections can be listed and ended"
	return f
}

type none struct{}

func (none) MatchConntrackFlow(*netlink.ConntrackFlow) bool { return false }

func checkForwarding(family knftables.Family) Feature {
	f, name := Feature{Name: "ip_forward", Required: true}, "net/ipv4/ip_forward"
	if family == knftables.IPv6Family {
		f.Name, name = "ipv6 forwarding", "net/ipv6/conf/all/forwarding"
	}
	have, err := sysctl.Get(name)
	switch {
	case err != nil && family == knftables.IPv6Family:
		f.Detail, f.Cure = oneLine(err), "start the kernel with IPv6: take ipv6.disable=1 from its command line"
	case err != nil:
		f.Detail, f.Cure = oneLine(err), "mount /proc"
	case have == "1":
		f.OK, f.Detail = true, "on"
	default:
		// Writing the value that it has changes nothing, and shows whether it could be changed.
		path := filepath.Join("/proc/sys", name)
		if err := os.WriteFile(path, []byte(have), 0o644); err != nil {
			f.Detail, f.Cure = fmt.Sprintf("off, and it cannot be turned on: %v", rootCause(err)), "sysctl -w "+strings.ReplaceAll(name, "/", ".")+"=1"
			return f
		}
		f.OK, f.Detail = true, "off now; it is turned on at the start"
	}
	return f
}

func rootCause(err error) error {
	for errors.Unwrap(err) != nil {
		err = errors.Unwrap(err)
	}
	return err
}

func oneLine(err error) string { return strings.Join(strings.Fields(err.Error()), " ") }
