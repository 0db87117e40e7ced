package nft

import (
	"errors"
	"fmt"
	"strings"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// dumpTries is how often a list is asked for that somebody's change has interrupted.
const dumpTries = 5

// has tells whether the kernel's table has all that want has. It is asked without the nft program,
// whose time and memory grow with all tables of the machine.
func (b *batch) has(want State) (bool, error) {
	for try := 1; ; try++ {
		same, err := b.hasNow(want)
		switch {
		case errors.Is(err, nl.ErrDumpInterrupted) && try < dumpTries:
		case errors.Is(err, unix.ENOENT): // the table or a set
			return false, nil
		default:
			return same, err
		}
	}
}

func (b *batch) hasNow(want State) (bool, error) {
	if same, err := b.hasChains(want.Chains); err != nil || !same {
		return false, err
	}
	if same, err := b.hasRules(want.Chains); err != nil || !same {
		return false, err
	}
	sets := map[string]bool{}
	err := b.dump(unix.NFT_MSG_GETSET, func(attrs []byte) {
		sets[name(attrs, unix.NFTA_SET_TABLE)+" "+name(attrs, unix.NFTA_SET_NAME)] = true
	})
	if err != nil {
		return false, err
	}
	for set, s := range want.Sets {
		if !sets[b.table+" "+set] {
			return false, nil
		}
		if s.Timeout > 0 {
			continue
		}
		if same, err := b.hasElements(set, s); err != nil || !same {
			return false, err
		}
	}
	return true, nil
}

func (b *batch) hasChains(want map[string]Chain) (bool, error) {
	n := 0
	err := b.dump(unix.NFT_MSG_GETCHAIN, func(attrs []byte) {
		// Not every kernel leaves out those of other tables.
		c, ok := want[name(attrs, unix.NFTA_CHAIN_NAME)]
		hooked := len(inside(attrs, unix.NFTA_CHAIN_HOOK)) > 0
		if ok && hooked == (c.Hook != nil) && name(attrs, unix.NFTA_CHAIN_TABLE) == b.table {
			n++
		}
	})
	return n == len(want), err
}

func (b *batch) hasRules(want map[string]Chain) (bool, error) {
	marks, count := map[string]string{}, map[string]int{}
	err := b.dump(unix.NFT_MSG_GETRULE, func(attrs []byte) {
		if name(attrs, unix.NFTA_RULE_TABLE) != b.table {
			return
		}
		chain := name(attrs, unix.NFTA_RULE_CHAIN)
		if count[chain] == 0 {
			for _, data := range inside(attrs, unix.NFTA_RULE_USERDATA) {
				marks[chain] = comment(data)
			}
		}
		count[chain]++
	})
	if err != nil {
		return false, err
	}
	for chain, c := range want {
		if count[chain] != len(c.Rules) || len(c.Rules) > 0 && marks[chain] != c.mark() {
			return false, nil
		}
	}
	return true, nil
}

// comment is the one of a rule; see [userdata].
func comment(data []byte) string {
	if len(data) < 2 || data[0] != 0 || len(data) < 2+int(data[1]) {
		return ""
	}
	return strings.TrimRight(string(data[2:2+int(data[1])]), "\x00")
}

// hasElements tells whether a set that is there has exactly these elements.
func (b *batch) hasElements(set string, s Set) (bool, error) {
	keys, values, _ := strings.Cut(s.Type, " : ")
	want := make(map[string]string, len(s.Elements)) // the chain that an element leads to, or its value, if any
	for key, value := range s.Elements {
		raw, ok := encodeKey(keys, key)
		if values == "verdict" {
			value, _ = strings.CutPrefix(value, "goto ")
		} else if s.Map && ok {
			var data []byte
			data, ok = encodeKey(values, value)
			value = string(data)
		}
		if !ok {
			return false, fmt.Errorf("the element %q of set %s is not a %s", key, set, s.Type)
		}
		want[string(raw)] = value
	}
	n, known := 0, true
	err := b.elements(set, func(element []byte) {
		n++
		value, ok := want[string(first(element, unix.NFTA_SET_ELEM_KEY, unix.NFTA_DATA_VALUE))]
		have := string(first(element, unix.NFTA_SET_ELEM_DATA, unix.NFTA_DATA_VALUE))
		if values == "verdict" {
			have = strings.TrimRight(string(first(element, unix.NFTA_SET_ELEM_DATA, unix.NFTA_DATA_VERDICT, unix.NFTA_VERDICT_CHAIN)), "\x00")
		}
		known = known && ok && value == have
	})
	return known && n == len(want), err
}

// dump hands over the attributes of each object of a kind.
func (b *batch) dump(kind uint16, each func(attrs []byte), which ...attr) error {
	request := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_NFTABLES<<8|int(kind), unix.NLM_F_DUMP)
	request.AddRawData(b.body(which...))
	return request.ExecuteIter(unix.NETLINK_NETFILTER, 0, func(m []byte) bool {
		if len(m) >= nfgenLen {
			each(m[nfgenLen:])
		}
		return true
	})
}

// elements hands over each element of a set.
func (b *batch) elements(set string, each func(element []byte)) error {
	return b.dump(unix.NFT_MSG_GETSETELEM, func(attrs []byte) {
		for _, list := range inside(attrs, unix.NFTA_SET_ELEM_LIST_ELEMENTS) {
			for _, element := range inside(list, unix.NFTA_LIST_ELEM) {
				each(element)
			}
		}
	}, text(unix.NFTA_SET_ELEM_LIST_SET, set))
}

// first follows attributes that lie in each other; nil where one is missing.
func first(raw []byte, kinds ...uint16) []byte {
	for _, kind := range kinds {
		found := inside(raw, kind)
		if len(found) == 0 {
			return nil
		}
		raw = found[0]
	}
	return raw
}

// name is an attribute that is text.
func name(attrs []byte, kind uint16) string {
	return strings.TrimRight(string(first(attrs, kind)), "\x00")
}
