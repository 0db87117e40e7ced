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
	"github.com/rundigitalplatform/rookery/network/overlay"
)

// CheckFirewall looks for chains of other programs (Docker, ufw, firewalld, an administrator)
// that refuse what they do not know: a packet must be accepted by every chain of its hook, so
// no rule of ours can let pods' through. A chain that names the pods' range, which is the
// cluster's of one IP family, has been told. Nothing is changed: those programs would not know
// of it. The cure also opens the ports ("6443/tcp") at which the other peers reach this one; that
// they are closed is no finding, since they may be open to the peers' addresses. It needs root,
// and the nft program to read such chains.
func CheckFirewall(ctx context.Context, pods netip.Prefix, ports ...string) Feature {
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
			cures = append(cures, c.cure(family, pods, ports))
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

// ufwChain begins the names of the chains that ufw makes, for IPv4 and for IPv6.
var ufwChain = regexp.MustCompile(`\bufw6?-`)

// cure is what lets packets of pods and of other peers through, in the words of whose chain it is.
func (c filter) cure(family knftables.Family, pods netip.Prefix, ports []string) string {
	iptables := "iptables"
	if family == knftables.IPv6Family {
		iptables = "ip6tables"
	}
	if strings.HasSuffix(c.name, legacy) {
		iptables += legacy
	}
	switch {
	case strings.Contains(c.name, "firewalld"):
		open := each(" && firewall-cmd --permanent", " --add-port=", ports)
		return fmt.Sprintf("firewall-cmd --permanent --zone=trusted --add-source=%s%s && firewall-cmd --reload", pods, open)
	case ufwChain.MatchString(c.rules):
		return fmt.Sprintf("ufw route allow from %[1]s && ufw route allow to %[1]s && ufw allow from %[1]s", pods) + each("", " && ufw allow ", ports)
	case c.hook == "forward" && (c.isOfIPTables() || strings.Contains(c.rules, "DOCKER-USER")):
		chain := "FORWARD"
		if strings.Contains(c.rules, "DOCKER-USER") {
			chain = "DOCKER-USER" // Docker leaves this one alone
		}
		return fmt.Sprintf("%[1]s -I %[2]s -s %[3]s -j ACCEPT && %[1]s -I %[2]s -d %[3]s -j ACCEPT, at each start of the machine", iptables, chain, pods)
	case c.isOfIPTables():
		cure := fmt.Sprintf("%s -I INPUT -s %s -j ACCEPT", iptables, pods)
		for _, port := range ports {
			number, protocol, _ := strings.Cut(port, "/")
			cure += fmt.Sprintf(" && %s -I INPUT -p %s --dport %s -j ACCEPT", iptables, protocol, number)
		}
		return cure + ", at each start of the machine"
	}
	if c.hook == "forward" {
		ports = nil // those are for the machine
	}
	return fmt.Sprintf("accept packets from and to %s in it", pods) + each(", and to", " ", ports)
}

// isOfIPTables tells whether the program iptables can write it.
func (c filter) isOfIPTables() bool {
	_, table, _ := strings.Cut(c.name, " of ")
	return strings.HasSuffix(table, legacy) || table == "table ip filter" || table == "table ip6 filter"
}

// legacy ends the names of the programs of the iptables from before nftables.
const legacy = "-legacy"

// each is start and then the items, each with a text before it; "" if there are none.
func each(start, before string, items []string) string {
	if len(items) == 0 {
		return ""
	}
	return start + before + strings.Join(items, before)
}

// Ports are those at which peers with that backend take packets of each other's pods, as
// [CheckFirewall] wants them; wireguard is the port that this backend has.
func Ports(backend string, wireguard uint16) []string {
	switch backend {
	case "wireguard":
		return []string{fmt.Sprintf("%d/udp", wireguard)}
	case "vxlan":
		return []string{fmt.Sprintf("%d/udp", overlay.VXLANPort)}
	}
	return nil // pods' packets as they are
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
	names, program := "/proc/net/ip_tables_names", "iptables"+legacy
	if family == knftables.IPv6Family {
		names, program = "/proc/net/ip6_tables_names", "ip6tables"+legacy
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
