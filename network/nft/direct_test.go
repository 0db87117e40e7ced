package nft_test

import (
	"bytes"
	"log/slog"
	"os/exec"
	"strings"
	"testing"
	"time"

	"sigs.k8s.io/knftables"

	"github.com/rundigitalplatform/rookery/network/nft"
	"github.com/rundigitalplatform/rookery/network/nft/nfttest"
)

// What is given to the kernel without the nft program is what the program makes of it.
func TestDirectIsWhatTheProgramWrites(t *testing.T) {
	four := []string{
		"meta l4proto tcp dnat to 10.42.1.2:8080",
		"meta l4proto udp dnat ip addr . port to numgen random mod 2 map { 0 : 10.42.1.2 . 53 , 1 : 10.42.2.2 . 5353 }",
		"ip saddr @clients goto other",
		"update @clients { ip saddr }",
		"meta l4proto sctp dnat to 10.42.1.2:99",
		"numgen inc mod 3 vmap { 0 : goto other , 1 : goto more , 2 : goto other }",
		"numgen random mod 1 vmap { 0 : goto more }",
		"meta l4proto tcp dnat ip addr . port to ip daddr . tcp dport . numgen random mod 3 map @ends",
		"meta l4proto udp dnat ip addr . port to udp dport . numgen random mod 1 map @ports",
		"goto other",
		"drop",
	}
	six := []string{
		"meta l4proto tcp dnat to [fd42:0:0:1::2]:8080",
		"meta l4proto udp dnat ip6 addr . port to numgen random mod 2 map { 0 : fd42:0:0:1::2 . 53 , 1 : fd42:0:0:2::2 . 5353 }",
		"ip6 saddr @clients goto other",
		"update @clients { ip6 saddr }",
		"meta l4proto tcp dnat ip6 addr . port to ip6 daddr . tcp dport . numgen random mod 3 map @ends",
		"meta l4proto udp dnat ip6 addr . port to udp dport . numgen random mod 1 map @ports",
	}
	for family, rules := range map[knftables.Family][]string{knftables.IPv4Family: four, knftables.IPv6Family: six} {
		t.Run(string(family), func(t *testing.T) {
			nfttest.Namespace(t)
			address, one, two := "ipv4_addr", "10.43.0.5", "10.43.0.6"
			if family == knftables.IPv6Family {
				address, one, two = "ipv6_addr", "fd43::5", "fd43::6"
			}
			state := func(full bool) nft.State {
				s := nft.NewState()
				elements := map[string]string{one + " . tcp . 80": "goto other"}
				names := map[string]string{"rk0123456789ab . " + one: ""}
				ends := map[string]string{one + " . 80 . 0": two + " . 8080"}
				if full {
					ends = map[string]string{one + " . 80 . 0": one + " . 8081", one + " . 80 . 300": two + " . 8080"}
					elements = map[string]string{one + " . tcp . 80": "goto rules", two + " . udp . 53": "goto more"}
					names = map[string]string{"rk0123456789ab . " + two: "", "rkba9876543210 . " + two: ""}
					s.Chains["rules"] = nft.Chain{Rules: rules}
					s.Sets["clients"] = nft.Set{Type: address, Timeout: time.Hour}
				}
				s.Chains["other"], s.Chains["more"] = nft.Chain{Rules: []string{"accept"}}, nft.Chain{Rules: []string{"drop"}}
				s.Sets["fronts"] = nft.Set{Map: true, Type: address + " . inet_proto . inet_service : verdict", Elements: elements}
				s.Sets["ends"] = nft.Set{
					Map: true, Elements: ends, Type: address + " . inet_service . integer : " + address + " . inet_service",
					TypeOf: string(family) + " daddr . tcp dport . numgen random mod 65536 : " + string(family) + " daddr . tcp dport",
				}
				s.Sets["ports"] = nft.Set{
					Map: true, Elements: map[string]string{"30053 . 1": one + " . 5353"}, Type: "inet_service . integer : " + address + " . inet_service",
					TypeOf: "udp dport . numgen random mod 65536 : " + string(family) + " daddr . udp dport",
				}
				s.Sets["names"] = nft.Set{Type: "ifname . " + address, Elements: names}
				return s
			}
			kernel, err := knftables.New(family, "rookery")
			if err != nil {
				t.Fatal(err)
			}
			program := nft.New(kernel, slog.New(slog.DiscardHandler))
			var log bytes.Buffer
			direct, err := nft.Open(family, "rookery", slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})))
			if err != nil {
				t.Fatal(err)
			}
			set := func(table *nft.Table, s nft.State) string {
				t.Helper()
				if err := table.Set(t.Context(), "s", s); err != nil {
					t.Fatal(err)
				}
				sweep(t, table)
				return nfttest.List(t, family, "rookery")
			}
			before := set(program, state(false))
			want := set(program, state(true))
			if err := program.Delete(t.Context()); err != nil {
				t.Fatal(err)
			}
			if got := set(direct, state(false)); got != before {
				t.Errorf("got:\n%s\nwant:\n%s", got, before)
			}
			log.Reset()
			if got := set(direct, state(true)); got != want {
				t.Errorf("got:\n%s\nwant:\n%s", got, want)
			}
			if got := set(direct, state(false)); got != before {
				t.Errorf("back again:\n%s\nwant:\n%s", got, before)
			}
			if said := log.String(); strings.Contains(said, "operations=") || strings.Contains(said, "did not take") {
				t.Errorf("the program was needed: %s", said)
			}
		})
	}
}

// sweep waits until the kernel has let go of what is not used any more.
func sweep(t *testing.T, table *nft.Table) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		done, err := table.Sweep(t.Context())
		if done && err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("sweep: %v, %v", done, err)
		}
	}
}

// Somebody else's change is found out by the kernel's refusal, and the table is written again.
func TestDirectAfterAFlush(t *testing.T) {
	state := func(rule string) nft.State {
		s := nft.NewState()
		s.Chains["one"], s.Chains["two"] = nft.Chain{Rules: []string{rule}}, nft.Chain{Rules: []string{"accept"}}
		return s
	}
	patch := nft.NewPatch()
	patch.Chains["one"] = &nft.Chain{Rules: []string{"goto two"}}
	for name, change := range map[string]func(*nft.Table) error{
		"set":   func(table *nft.Table) error { return table.Set(t.Context(), "s", state("goto two")) },
		"patch": func(table *nft.Table) error { return table.Patch(t.Context(), "s", patch) },
	} {
		t.Run(name, func(t *testing.T) {
			nfttest.Namespace(t)
			table, err := nft.Open(knftables.IPv4Family, "rookery", slog.New(slog.DiscardHandler))
			if err != nil {
				t.Fatal(err)
			}
			if err := table.Set(t.Context(), "s", state("drop")); err != nil {
				t.Fatal(err)
			}
			if out, err := exec.Command("nft", "flush", "ruleset").CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			// The caller tries again.
			if err := change(table); err == nil {
				t.Error("nobody has noticed")
			}
			if err := change(table); err != nil {
				t.Fatal(err)
			}
			out, err := exec.Command("nft", "list", "table", "ip", "rookery").CombinedOutput()
			if err != nil || !strings.Contains(string(out), "goto two") || !strings.Contains(string(out), "accept") {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
}
