package network

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"sigs.k8s.io/knftables"

	"github.com/rundigitalplatform/rookery/network/overlay"
)

// Clean removes every trace from the machine: devices, routes, rules and the
// allocations. Pods that still run lose their network. It must not be called
// while Run runs. Idempotent. Forwarding is left on: others may rely on it by now.
func (n *Network) Clean(ctx context.Context) error {
	var errs []error
	links, err := overlay.Dump(netlink.LinkList)
	if err != nil {
		errs = append(errs, fmt.Errorf("list devices: %w", err))
	}
	for _, link := range links {
		name := link.Attrs().Name
		ours := name == anchorDevice || name == overlay.WireGuardDevice || name == overlay.VXLANDevice ||
			link.Type() == "veth" && strings.HasPrefix(name, devicePrefix) && len(name) == len(deviceName(""))
		if ours {
			errs = append(errs, overlay.DeleteLink(name))
		}
	}
	for _, mark := range []netlink.RouteProtocol{overlay.PeerRoutes, localRoutes} {
		routes, err := overlay.Routes(mark)
		if err != nil {
			errs = append(errs, err)
		}
		for _, r := range routes {
			if err := netlink.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) {
				errs = append(errs, fmt.Errorf("remove route %s: %w", r.Dst, err))
			}
		}
	}
	for _, family := range []knftables.Family{knftables.IPv4Family, knftables.IPv6Family} {
		table, err := openTable(family, n.log)
		switch {
		case err == nil:
			errs = append(errs, table.Delete(ctx))
		case n.cfg.family(family): // else a kernel that lacks the family has nothing of it to clean
			errs = append(errs, err)
		}
	}
	for _, path := range []string{n.ipamPath(), n.hostPortsPath()} {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("remove pod addresses: %w", err))
		}
	}
	return errors.Join(errs...)
}
