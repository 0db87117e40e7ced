// Package conntrack ends tracked connections that the rules of today would not have
// made. Which these are is said by its callers: services, policy and hostports.
package conntrack

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"sigs.k8s.io/knftables"
)

// ErrUnavailable says that the kernel cannot list tracked connections.
var ErrUnavailable = errors.New("the kernel cannot list tracked connections (CONFIG_NF_CT_NETLINK): they wait for their own timeouts")

// Delete ends the family's connections that the filter matches, and returns how many. It
// reads every one of them that the network namespace has. The error is
// [ErrUnavailable] where the kernel cannot do it.
func Delete(family knftables.Family, filter netlink.CustomConntrackFilter) (uint, error) {
	of := netlink.InetFamily(unix.AF_INET)
	if family == knftables.IPv6Family {
		of = unix.AF_INET6
	}
	n, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, of, filter)
	switch {
	case errors.Is(err, unix.EPROTONOSUPPORT), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EINVAL):
		return n, fmt.Errorf("%w: %w", ErrUnavailable, err)
	case err != nil:
		return n, fmt.Errorf("delete tracked connections: %w", err)
	}
	return n, nil
}
