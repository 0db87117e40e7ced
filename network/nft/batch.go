package nft

import (
	"encoding/binary"
	"net/netip"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	"sigs.k8s.io/knftables"
)

// The numbers that the nft program gives to the types of data (its datatype.h); the kernel
// keeps them for it.
const (
	typeInteger     = 4
	typeIPv4Addr    = 7
	typeIPv6Addr    = 8
	typeInetService = 13
	typeBits        = 6 // of each type in a concatenation
)

// Registers: the first of 16 bytes, and the second of 4 (uapi's NFT_REG32_01).
const (
	reg1   = unix.NFT_REG_1
	reg2   = unix.NFT_REG_2
	reg1at = unix.NFT_REG32_01
)

func (b *batch) addChain(name string, c Chain) {
	if c.Hook != nil {
		b.unable = true
	}
	b.message(unix.NFT_MSG_NEWCHAIN, unix.NLM_F_CREATE, text(unix.NFTA_CHAIN_NAME, name))
}

func (b *batch) deleteChain(name string) {
	b.message(unix.NFT_MSG_DELCHAIN, 0, text(unix.NFTA_CHAIN_NAME, name))
}

func (b *batch) flushChain(name string) {
	b.message(unix.NFT_MSG_DELRULE, 0, text(unix.NFTA_RULE_CHAIN, name))
}

func (b *batch) addRules(chain string, c Chain) {
	for i, rule := range c.Rules {
		if b.unable {
			return
		}
		exprs, ok := b.expressions(strings.Fields(rule))
		if !ok {
			b.unable = true
			return
		}
		attrs := []attr{text(unix.NFTA_RULE_CHAIN, chain), nested(unix.NFTA_RULE_EXPRESSIONS, exprs...)}
		if i == 0 {
			attrs = append(attrs, attr{unix.NFTA_RULE_USERDATA, userdata(0, append([]byte(c.mark()), 0))}) // 0: a comment
		}
		b.message(unix.NFT_MSG_NEWRULE, unix.NLM_F_CREATE|unix.NLM_F_APPEND, attrs...)
	}
}

// userdata is what the nft program keeps for itself: a type, a length and a value.
func userdata(kind byte, value []byte) []byte {
	return append([]byte{kind, byte(len(value))}, value...)
}

func (b *batch) addSet(name string, s Set) {
	if s.Map || s.Timeout == 0 || s.Size > 0 || s.Type != AddressType(b.family) {
		b.unable = true // only ever at the start, or with policies
		return
	}
	kind, size := b.address()
	b.message(unix.NFT_MSG_NEWSET, unix.NLM_F_CREATE, text(unix.NFTA_SET_NAME, name),
		number(unix.NFTA_SET_FLAGS, unix.NFT_SET_TIMEOUT|unix.NFT_SET_EVAL), number(unix.NFTA_SET_KEY_TYPE, kind), number(unix.NFTA_SET_KEY_LEN, size),
		number(unix.NFTA_SET_ID, b.setID()), attr{unix.NFTA_SET_TIMEOUT, binary.BigEndian.AppendUint64(nil, uint64(s.Timeout.Milliseconds()))})
}

func (b *batch) deleteSet(name string, _ Set) {
	b.message(unix.NFT_MSG_DELSET, 0, text(unix.NFTA_SET_NAME, name))
}

// setID tells sets of one transaction apart.
func (b *batch) setID() uint32 {
	b.sets++
	return b.sets
}

// address is the type of the family's addresses and their size.
func (b *batch) address() (kind, size uint32) {
	if b.family == knftables.IPv6Family {
		return typeIPv6Addr, 16
	}
	return typeIPv4Addr, 4
}

func (b *batch) addElement(set string, s Set, key, value string) {
	b.element(unix.NFT_MSG_NEWSETELEM, unix.NLM_F_CREATE, set, s, key, value)
}

func (b *batch) deleteElement(set string, s Set, key, value string) {
	b.element(unix.NFT_MSG_DELSETELEM, 0, set, s, key, value)
}

func (b *batch) element(kind, flags uint16, set string, s Set, key, value string) {
	keys, values, _ := strings.Cut(s.Type, " : ")
	raw, ok := encodeKey(keys, key)
	element := []attr{dataValue(unix.NFTA_SET_ELEM_KEY, raw)}
	switch {
	case values == "verdict":
		chain, jumps := strings.CutPrefix(value, "goto ")
		ok = ok && jumps
		element = append(element, verdict(unix.NFTA_SET_ELEM_DATA, unix.NFT_GOTO, chain))
	case s.Map:
		data, good := encodeKey(values, value)
		ok = ok && good
		element = append(element, dataValue(unix.NFTA_SET_ELEM_DATA, data))
	}
	if !ok {
		b.unable = true
		return
	}
	b.message(kind, flags, text(unix.NFTA_SET_ELEM_LIST_SET, set),
		nested(unix.NFTA_SET_ELEM_LIST_ELEMENTS, nested(unix.NFTA_LIST_ELEM, element...)))
}

func dataValue(kind uint16, raw []byte) attr {
	return nested(kind, attr{unix.NFTA_DATA_VALUE, raw})
}

func verdict(kind uint16, code int32, chain string) attr {
	attrs := []attr{number(unix.NFTA_VERDICT_CODE, uint32(code))}
	if chain != "" {
		attrs = append(attrs, text(unix.NFTA_VERDICT_CHAIN, chain))
	}
	return nested(kind, nested(unix.NFTA_DATA_VERDICT, attrs...))
}

// encodeKey is a key, or the value of a map, as the kernel has it: of several parts, each fills
// whole registers.
func encodeKey(types, key string) (raw []byte, ok bool) {
	kinds, parts := strings.Split(types, " . "), strings.Split(key, " . ")
	if len(kinds) != len(parts) {
		return nil, false
	}
	for i, kind := range kinds {
		part, ok := encodePart(kind, parts[i])
		if !ok {
			return nil, false
		}
		raw = append(raw, part...)
		for len(kinds) > 1 && len(raw)%4 != 0 {
			raw = append(raw, 0)
		}
	}
	return raw, true
}

func encodePart(kind, text string) (raw []byte, ok bool) {
	switch kind {
	case "ipv4_addr", "ipv6_addr":
		a, err := netip.ParseAddr(text)
		return a.AsSlice(), err == nil && AddressType(FamilyOf(a)) == kind
	case "inet_service":
		n, err := strconv.ParseUint(text, 10, 16)
		return binary.BigEndian.AppendUint16(nil, uint16(n)), err == nil
	case "inet_proto":
		n, ok := protocol(text)
		return []byte{n}, ok
	case "integer":
		n, err := strconv.ParseUint(text, 10, 32)
		return binary.NativeEndian.AppendUint32(nil, uint32(n)), err == nil
	case "ifname":
		raw = make([]byte, unix.IFNAMSIZ)
		return raw, copy(raw, text) < unix.IFNAMSIZ
	}
	return nil, false
}

func protocol(name string) (byte, bool) {
	switch name {
	case "tcp":
		return unix.IPPROTO_TCP, true
	case "udp":
		return unix.IPPROTO_UDP, true
	case "sctp":
		return unix.IPPROTO_SCTP, true
	}
	return 0, false
}
