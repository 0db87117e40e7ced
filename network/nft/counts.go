package nft

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
	"sigs.k8s.io/knftables"
)

// Count is an element of a set whose elements count packets.
type Count struct {
	Key     []byte // its parts, each filling whole registers of 4 bytes
	Packets uint64
}

// Counts are the elements of a set that the packet path fills ([Set.Timeout]) by rules such as
// "update @set { ip saddr counter }"; none if there is no such set. It asks the kernel
// without the nft program, so it may be called often.
func Counts(family knftables.Family, table, set string) ([]Count, error) {
	var out []Count
	err := newBatch(family, table).elements(set, func(element []byte) { out = append(out, count(element)) })
	if errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list nftables set %s: %w", set, err)
	}
	return out, nil
}

// nfgenLen is the length of struct nfgenmsg.
const nfgenLen = 4

func count(element []byte) (c Count) {
	for _, key := range inside(element, unix.NFTA_SET_ELEM_KEY) {
		for _, raw := range inside(key, unix.NFTA_DATA_VALUE) {
			c.Key = raw
		}
	}
	for _, e := range inside(element, unix.NFTA_SET_ELEM_EXPR) {
		for _, data := range inside(e, unix.NFTA_EXPR_DATA) {
			for _, raw := range inside(data, unix.NFTA_COUNTER_PACKETS) {
				if len(raw) == 8 {
					c.Packets = binary.BigEndian.Uint64(raw)
				}
			}
		}
	}
	return c
}

// inside are the attributes of that kind; what cannot be read has none.
func inside(raw []byte, kind uint16) (out [][]byte) {
	attrs, err := nl.ParseRouteAttr(raw)
	if err != nil {
		return nil
	}
	for _, a := range attrs {
		if a.Attr.Type&^(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER) == kind {
			out = append(out, a.Value)
		}
	}
	return out
}
