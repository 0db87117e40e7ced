package nft

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	"sigs.k8s.io/knftables"
)

// expressions are a rule as the kernel has it, and as the nft program would have written it;
// ok is false for one that is not made of what is known here. Sets that it needs are added
// to the batch.
func (b *batch) expressions(words []string) (out []attr, ok bool) {
	ip := string(b.family)
	for len(words) > 0 {
		var exprs []attr
		n := 0
		switch {
		case match(words, "meta", "l4proto", "*"):
			proto, known := protocol(words[2])
			if !known {
				return nil, false
			}
			n, exprs = 3, []attr{
				expr("meta", number(unix.NFTA_META_DREG, reg1), number(unix.NFTA_META_KEY, unix.NFT_META_L4PROTO)),
				expr("cmp", number(unix.NFTA_CMP_SREG, reg1), number(unix.NFTA_CMP_OP, unix.NFT_CMP_EQ), dataValue(unix.NFTA_CMP_DATA, []byte{proto})),
			}
		case match(words, "dnat", "to", "*"):
			n, exprs = 3, b.dnat(words[2])
		case match(words, "dnat", ip, "addr", ".", "port", "to", "numgen"):
			n, exprs = len(words), b.dnatMap(words[6:])
		case match(words, "numgen", "*", "mod", "*", "vmap", "{"):
			n, exprs = len(words), b.verdictMap(words)
		case match(words, "dnat", ip, "addr", ".", "port", "to"):
			n, exprs = len(words), b.dnatFrom(words[6:])
		case match(words, ip, "saddr", "*") && strings.HasPrefix(words[2], "@"):
			n, exprs = 3, []attr{b.source(), expr("lookup", text(unix.NFTA_LOOKUP_SET, words[2][1:]), number(unix.NFTA_LOOKUP_SREG, reg1))}
		case match(words, "update", "*", "{", ip, "saddr", "}"):
			n, exprs = 6, []attr{b.source(), expr("dynset", text(unix.NFTA_DYNSET_SET_NAME, words[1][1:]),
				number(unix.NFTA_DYNSET_OP, unix.NFT_DYNSET_OP_UPDATE), number(unix.NFTA_DYNSET_SREG_KEY, reg1))}
		case match(words, "goto", "*"):
			n, exprs = 2, []attr{immediate(verdict(unix.NFTA_IMMEDIATE_DATA, unix.NFT_GOTO, words[1]), unix.NFT_REG_VERDICT)}
		case match(words, "drop"):
			n, exprs = 1, []attr{immediate(verdict(unix.NFTA_IMMEDIATE_DATA, nfDrop, ""), unix.NFT_REG_VERDICT)}
		}
		if exprs == nil {
			return nil, false
		}
		out, words = append(out, exprs...), words[n:]
	}
	return out, true
}

// nfDrop is NF_DROP of uapi/linux/netfilter.h.
const nfDrop = 0

// match tells whether words begin with those; "*" is any.
func match(words []string, with ...string) bool {
	return len(words) >= len(with) && slices.EqualFunc(words[:len(with)], with, func(w, p string) bool { return p == "*" || p == w })
}

func expr(name string, attrs ...attr) attr {
	return nested(unix.NFTA_LIST_ELEM, text(unix.NFTA_EXPR_NAME, name), nested(unix.NFTA_EXPR_DATA, attrs...))
}

func immediate(data attr, register uint32) attr {
	return expr("immediate", number(unix.NFTA_IMMEDIATE_DREG, register), data)
}

// source loads the sender's address.
func (b *batch) source() attr {
	if b.family == knftables.IPv6Family {
		return b.network(8)
	}
	return b.network(12)
}

// network loads the address at that offset of the packet's header.
func (b *batch) network(offset uint32) attr {
	_, size := b.address()
	return expr("payload", number(unix.NFTA_PAYLOAD_DREG, reg1), number(unix.NFTA_PAYLOAD_BASE, unix.NFT_PAYLOAD_NETWORK_HEADER),
		number(unix.NFTA_PAYLOAD_OFFSET, offset), number(unix.NFTA_PAYLOAD_LEN, size))
}

func (b *batch) nat(port uint32, more ...attr) attr {
	return expr("nat", append([]attr{number(unix.NFTA_NAT_TYPE, unix.NFT_NAT_DNAT), number(unix.NFTA_NAT_FAMILY, uint32(b.proto())),
		number(unix.NFTA_NAT_REG_ADDR_MIN, reg1), number(unix.NFTA_NAT_REG_PROTO_MIN, port)}, more...)...)
}

// dnat translates to one address and port; nil if that is none of the family.
func (b *batch) dnat(to string) []attr {
	at, err := netip.ParseAddrPort(to)
	if err != nil || FamilyOf(at.Addr()) != b.family {
		return nil
	}
	const portSpecified = 2 // NF_NAT_RANGE_PROTO_SPECIFIED
	return []attr{
		immediate(dataValue(unix.NFTA_IMMEDIATE_DATA, at.Addr().AsSlice()), reg1),
		immediate(dataValue(unix.NFTA_IMMEDIATE_DATA, binary.BigEndian.AppendUint16(nil, at.Port())), reg2),
		b.nat(reg2, number(unix.NFTA_NAT_FLAGS, portSpecified)),
	}
}

// dnatMap translates to one of several: "numgen random mod N map { 0 : ADDRESS . PORT , … }".
func (b *batch) dnatMap(words []string) []attr {
	numgen, elements, ok := choice(words, "map")
	kind, size := b.address()
	port := uint32(reg1at)
	if b.family == knftables.IPv6Family {
		port = reg2
	}
	var of []attr
	for i, e := range elements {
		raw, good := encodeKey(AddressType(b.family)+" . inet_service", e)
		ok = ok && good
		of = append(of, nested(unix.NFTA_LIST_ELEM, dataValue(unix.NFTA_SET_ELEM_KEY, binary.NativeEndian.AppendUint32(nil, uint32(i))), dataValue(unix.NFTA_SET_ELEM_DATA, raw)))
	}
	if !ok {
		return nil
	}
	const bigEndian = 2 // the nft program's BYTEORDER_BIG_ENDIAN
	id := b.anonymous(of, userdata(1, binary.NativeEndian.AppendUint32(nil, bigEndian)),
		number(unix.NFTA_SET_DATA_TYPE, kind<<typeBits|typeInetService), number(unix.NFTA_SET_DATA_LEN, size+4))
	return []attr{numgen, lookup(id, reg1), b.nat(port)}
}

// dnatFrom translates to what a map has for the packet and a number: "[ip daddr .] tcp dport .
// numgen random mod N map @MAP".
func (b *batch) dnatFrom(words []string) []attr {
	var exprs []attr
	next := uint32(reg1at) - 1 // registers of 4 bytes; the first of 16 is the first of these
	port := uint32(reg1at)
	if b.family == knftables.IPv6Family {
		port = reg2
	}
	if match(words, string(b.family), "daddr", ".") {
		offset := uint32(16)
		if b.family == knftables.IPv6Family {
			offset = 24
		}
		_, size := b.address()
		exprs = append(exprs, b.network(offset))
		next, words = next+size/4, words[3:]
	}
	if !match(words, "*", "dport", ".", "numgen", "random", "mod", "*", "map", "*") || len(words) != 9 {
		return nil
	}
	_, known := protocol(words[0])
	count, err := strconv.ParseUint(words[6], 10, 32)
	if !known || err != nil || !strings.HasPrefix(words[8], "@") {
		return nil
	}
	return append(exprs,
		expr("payload", number(unix.NFTA_PAYLOAD_DREG, next), number(unix.NFTA_PAYLOAD_BASE, unix.NFT_PAYLOAD_TRANSPORT_HEADER),
			number(unix.NFTA_PAYLOAD_OFFSET, 2), number(unix.NFTA_PAYLOAD_LEN, 2)),
		numberBelow(next+1, uint32(count), unix.NFT_NG_RANDOM),
		expr("lookup", text(unix.NFTA_LOOKUP_SET, words[8][1:]), number(unix.NFTA_LOOKUP_SREG, reg1), number(unix.NFTA_LOOKUP_DREG, reg1)),
		b.nat(port))
}

// verdictMap goes to one of several chains: "numgen inc mod N vmap { 0 : goto CHAIN , … }".
func (b *batch) verdictMap(words []string) []attr {
	numgen, elements, ok := choice(words, "vmap")
	var of []attr
	for i, e := range elements {
		chain, jumps := strings.CutPrefix(e, "goto ")
		ok = ok && jumps
		of = append(of, nested(unix.NFTA_LIST_ELEM, dataValue(unix.NFTA_SET_ELEM_KEY, binary.NativeEndian.AppendUint32(nil, uint32(i))), verdict(unix.NFTA_SET_ELEM_DATA, unix.NFT_GOTO, chain)))
	}
	if !ok {
		return nil
	}
	id := b.anonymous(of, nil, number(unix.NFTA_SET_DATA_TYPE, unix.NFT_DATA_VERDICT))
	return []attr{numgen, lookup(id, unix.NFT_REG_VERDICT)}
}

// choice reads "numgen random|inc mod N map|vmap { 0 : VALUE , 1 : VALUE … }" to its end.
func choice(words []string, kind string) (chosen attr, values []string, ok bool) {
	if !match(words, "numgen", "*", "mod", "*", kind, "{") || words[len(words)-1] != "}" {
		return attr{}, nil, false
	}
	how, known := map[string]uint32{"random": unix.NFT_NG_RANDOM, "inc": unix.NFT_NG_INCREMENTAL}[words[1]]
	count, err := strconv.ParseUint(words[3], 10, 32)
	for i, e := range strings.Split(strings.Join(words[6:len(words)-1], " "), " , ") {
		value, in := strings.CutPrefix(e, strconv.Itoa(i)+" : ")
		known = known && in
		values = append(values, value)
	}
	return numberBelow(reg1, uint32(count), how), values, known && err == nil && int(count) == len(values)
}

// numberBelow loads a number below count, at random or the next one.
func numberBelow(to, count, how uint32) attr {
	return expr("numgen", number(unix.NFTA_NG_DREG, to), number(unix.NFTA_NG_MODULUS, count), number(unix.NFTA_NG_TYPE, how), number(unix.NFTA_NG_OFFSET, 0))
}

func lookup(id, to uint32) attr {
	return expr("lookup", text(unix.NFTA_LOOKUP_SET, anonymousMap), number(unix.NFTA_LOOKUP_SREG, reg1), number(unix.NFTA_LOOKUP_DREG, to), number(unix.NFTA_LOOKUP_SET_ID, id))
}

// anonymousMap lets the kernel choose the name.
const anonymousMap = "__map%d"

// anonymous adds a map of numbers that belongs to the rule that comes next. more is what
// the map's values are, data what the nft program keeps of them for itself.
func (b *batch) anonymous(elements []attr, data []byte, more ...attr) (id uint32) {
	const hostEndian = 1 // the nft program's BYTEORDER_HOST_ENDIAN
	id = b.setID()
	b.message(unix.NFT_MSG_NEWSET, unix.NLM_F_CREATE, append([]attr{
		text(unix.NFTA_SET_NAME, anonymousMap), number(unix.NFTA_SET_FLAGS, unix.NFT_SET_ANONYMOUS|unix.NFT_SET_CONSTANT|unix.NFT_SET_MAP),
		number(unix.NFTA_SET_KEY_TYPE, typeInteger), number(unix.NFTA_SET_KEY_LEN, 4), number(unix.NFTA_SET_ID, id),
		nested(unix.NFTA_SET_DESC, number(unix.NFTA_SET_DESC_SIZE, uint32(len(elements)))),
		{unix.NFTA_SET_USERDATA, append(userdata(0, binary.NativeEndian.AppendUint32(nil, hostEndian)), data...)},
	}, more...)...)
	b.message(unix.NFT_MSG_NEWSETELEM, unix.NLM_F_CREATE, text(unix.NFTA_SET_ELEM_LIST_SET, anonymousMap),
		number(unix.NFTA_SET_ELEM_LIST_SET_ID, id), nested(unix.NFTA_SET_ELEM_LIST_ELEMENTS, elements...))
	return id
}
