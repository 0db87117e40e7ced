package network

import (
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/rundigitalplatform/rookery/network/nft/nfttest"
)

func TestCheckFindsWhatTheTestsNeed(t *testing.T) {
	needRoot(t)
	before, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range Check(t.Context(), []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16"), netip.MustParsePrefix("fd42::/56")}) {
		t.Logf("%+v", f)
		if f.Required && !f.OK {
			t.Errorf("%s: %s; %s", f.Name, f.Detail, f.Cure)
		}
		if f.OK == (f.Cure != "") {
			t.Errorf("%s: a cure is for what is not OK: %+v", f.Name, f)
		}
	}
	if after, err := os.Readlink("/proc/self/ns/net"); err != nil || after != before {
		t.Errorf("the check moved the process: %s, was %s (%v)", after, before, err)
	}
}

// Rules as other firewalls write them are recognised, and so is that they were told of the pods.
func TestCheckKnowsOtherFirewalls(t *testing.T) {
	nfttest.Namespace(t)
	v4, v6 := netip.MustParsePrefix("10.42.0.0/16"), netip.MustParsePrefix("fd42::/56")
	const firewalld = `table inet firewalld {
		chain filter_FORWARD {
			type filter hook forward priority filter + 10; policy accept;
			ct state { established, related } accept
			jump filter_FORWARD_ZONES
			reject with icmpx type admin-prohibited
		}
		chain filter_FORWARD_ZONES { %s }
	}`
	for _, c := range []struct {
		name, rules string
		v4, v6      string // part of the cure; "": OK
	}{
		{"none", "table ip nat { chain FORWARD { type nat hook prerouting priority 0; policy drop; }; }", "", ""},
		{"an open one", "table ip filter { chain FORWARD { type filter hook forward priority 0; policy accept; }; }", "", ""},
		{"an administrator's", "table inet mine { chain in { type filter hook input priority 0; policy drop; }; }", "accept packets from and to 10.42.0.0/16 in it, and to 6443/tcp 51820/udp", "accept packets from and to fd42::/56"},
		{"ufw's", "table ip filter { chain ufw-before-input { accept; }; chain INPUT { type filter hook input priority 0; policy drop; jump ufw-before-input; }; }", "ufw allow from 10.42.0.0/16 && ufw allow 6443/tcp && ufw allow 51820/udp", ""},
		{"ufw's of IPv6", "table ip6 filter { chain ufw6-before-forward { accept; }; chain FORWARD { type filter hook forward priority 0; policy drop; jump ufw6-before-forward; }; }", "", "ufw route allow from fd42::/56"},
		{"ufw's, told", "table ip filter { chain ufw-user-input { ip saddr 10.42.0.0/16 accept; }; chain INPUT { type filter hook input priority 0; policy drop; jump ufw-user-input; }; }", "", ""},
		{"iptables' own", "table ip6 filter { chain FORWARD { type filter hook forward priority 0; policy drop; }; }", "", "ip6tables -I FORWARD -s fd42::/56 -j ACCEPT && ip6tables -I FORWARD -d fd42::/56 -j ACCEPT, at"},
		{"told elsewhere", "table ip filter { chain other { ip saddr 10.42.0.0/16 accept; }; chain INPUT { type filter hook input priority 0; policy drop; }; }", "iptables -I INPUT -s 10.42.0.0/16 -j ACCEPT && iptables -I INPUT -p tcp --dport 6443 -j ACCEPT && iptables -I INPUT -p udp --dport 51820 -j ACCEPT, at", ""},
		{"firewalld's", strings.ReplaceAll(firewalld, "%s", ""), "firewall-cmd --permanent --zone=trusted --add-source=10.42.0.0/16 && firewall-cmd --permanent --add-port=6443/tcp --add-port=51820/udp && firewall-cmd --reload", "--add-source=fd42::/56"},
		{"firewalld's, told", strings.ReplaceAll(firewalld, "%s", "ip saddr 10.42.0.0/16 accept; ip6 saddr fd42::/56 accept;"), "", ""},
	} {
		load := exec.Command("nft", "-f", "-")
		load.Stdin = strings.NewReader("flush ruleset\n" + c.rules)
		if out, err := load.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", c.name, err, out)
		}
		for pods, want := range map[netip.Prefix]string{v4: c.v4, v6: c.v6} {
			if f := CheckFirewall(t.Context(), pods, "6443/tcp", "51820/udp"); f.OK != (want == "") || !strings.Contains(f.Cure, want) || f.OK != (f.Cure == "") {
				t.Errorf("%s: for pods in %s: %+v, want the cure %q", c.name, pods, f, want)
			}
		}
	}
}

// needRoot fails a test that cannot run, unless the caller has asked to go without.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("ROOKERY_SKIP_ROOT") == "1" {
		t.Skip("needs root")
	}
	t.Fatal("needs root: run as root, or set ROOKERY_SKIP_ROOT=1 to go without")
}
