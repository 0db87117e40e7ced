package network

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"

	"github.com/google/nftables"
	"sigs.k8s.io/knftables"

	"github.com/rundigitalplatform/rookery/network/nft"
)

// CheckFirewall looks for chains of other programs (Docker, ufw, firewalld, an administrator)
// that refuse what they do not know: a packet must be accepted by every chain of its hook, so
// no rule of ours can let pods' through. A chain that names the pods' range, which is the
// cluster's of one IP family, has been told. Nothing is changed: those programs would not know
// of it. It needs root, and the nft program to read such chains.
func CheckFirewall(ctx context.Context, pods netip.Prefix) Feature {
	family := nft.FamilyOf(pods.Addr())
	f := Feature{Name: "firewall " + string(family)}
	var found, cures []string
	filters, err := listFilters(ctx, family)
	if err != nil {
		f.Detail, f.Cure = oneLine(err), "install the package nftables, on a kernel with nf_tables: modprobe nf_tables"
		return f
	}
	for _, c := range filters {
		if !strings.Contains(c.rules, pods.String()) {
			found = append(found, c.name)
			cures = append(cures, c.cure(family, pods))
		}
	}
	if len(found) > 0 {
		f.Detail = fmt.Sprintf("%s of another program would drop packets of pods", strings.Join(found, " and "))
		f.Cure = strings.Join(slices.Compact(cures), "; ")
		return f
	}
	f.OK, f.Detail = true, "no other program's rules refuse packets of pods"
	return f
}

// filter is a base chain of another program, for packets that are forwarded or for the machine,
// which refuses what no rule of it accepts.
type filter struct {
	name  string // for people
	hook  string // forward, input
	rules string // of it and of all chains that it leads to
}

// cure is what lets packets of pods through, in the words of whose chain it is.
func (c filter) cure(family knftables.Family, pods netip.Prefix) string {
	iptables := "iptables"
	if family == knftables.IPv6Family {
		iptables = "ip6tables"
	}
	switch {
	case strings.Contains(c.name, "firewalld"):
		return fmt.Sprintf("firewall-cmd --permanent --zone=trusted --add-source=%s && firewall-cmd --reload", pods)
	case strings.Contains(c.rules, "ufw-"):
		return fmt.Sprintf("ufw route allow from %[1]s && ufw route allow to %[1]s && ufw allow from %[1]s", pods)
	case c.hook == "forward" && strings.Contains(c.rules, "DOCKER-USER"):
		return fmt.Sprintf("%[1]s -I DOCKER-USER -s %[2]s -j ACCEPT && %[1]s -I DOCKER-USER -d %[2]s -j ACCEPT, at each start of the machine", iptables, pods)
	}
	return fmt.Sprintf("accept packets from and to %s in it", pods)
}

// listFilters are the filters of other programs that see packets of a family.
func listFilters(ctx context.Context, family knftables.Family) (out []filter, err error) {
	own := nftables.TableFamilyIPv4
	if family == knftables.IPv6Family {
		own = nftables.TableFamilyIPv6
	}
	hooks := map[nftables.ChainHook]string{*nftables.ChainHookForward: "forward", *nftables.ChainHookInput: "input"}
	for _, of := range []struct {
		name   string
		number nftables.TableFamily
	}{{string(family), own}, {"inet", nftables.TableFamilyINet}} {
		chains, err := new(nftables.Conn).ListChainsOfTableFamily(of.number)
		if err != nil {
			return nil, fmt.Errorf("list chains: %w", err)
		}
		for _, c := range chains {
			if c.Type != nftables.ChainTypeFilter || c.Hooknum == nil || hooks[*c.Hooknum] == "" || c.Table.Name == tableName {
				continue
			}
			// firewalld's chains accept by their policy, and end with a rule that does not.
			if c.Table.Name != "firewalld" && (c.Policy == nil || *c.Policy != nftables.ChainPolicyDrop) {
				continue
			}
			table, err := exec.CommandContext(ctx, "nft", "list", "table", of.name, c.Table.Name).CombinedOutput()
			if err != nil {
				return nil, fmt.Errorf("list table %s %s: %w: %s", of.name, c.Table.Name, err, table)
			}
			out = append(out, filter{fmt.Sprintf("the chain %s of table %s %s", c.Name, of.name, c.Table.Name), hooks[*c.Hooknum], reached(string(table), c.Name)})
		}
	}
	return append(out, listLegacy(ctx, family)...), nil
}

var (
	chainOf = regexp.MustCompile(`(?ms)^\tchain (\S+) \{\n(.*?)^\t\}`)
	leadsTo = regexp.MustCompile(`\b(?:jump|goto) (\S+)`)
)

// reached are the rules of a chain of a listed table and of all that it leads to.
func reached(table, from string) string {
	chains := map[string]string{}
	for _, m := range chainOf.FindAllStringSubmatch(table, -1) {
		chains[m[1]] = m[2]
	}
	var out strings.Builder
	for queue := []string{from}; len(queue) > 0; queue = queue[1:] {
		rules := chains[queue[0]]
		delete(chains, queue[0])
		out.WriteString(rules)
		for _, m := range leadsTo.FindAllStringSubmatch(rules, -1) {
			queue = append(queue, m[1])
		}
	}
	return out.String()
}

// listLegacy are those of the iptables from before nftables, which nft does not list; asking
// for them where there are none would make them.
func listLegacy(ctx context.Context, family knftables.Family) (out []filter) {
	names, program := "/proc/net/ip_tables_names", "iptables-legacy"
	if family == knftables.IPv6Family {
		names, program = "/proc/net/ip6_tables_names", "ip6tables-legacy"
	}
	if have, err := os.ReadFile(names); err != nil || !strings.Contains(string(have), "filter") {
		return nil
	}
	rules, err := exec.CommandContext(ctx, program, "-S").Output()
	if err != nil {
		return nil // whoever made them has the program; nothing can be said
	}
	for _, hook := range []string{"forward", "input"} {
		if chain := strings.ToUpper(hook); strings.Contains(string(rules), "-P "+chain+" DROP\n") {
			out = append(out, filter{"the chain " + chain + " of " + program, hook, string(rules)})
		}
	}
	return out
}
