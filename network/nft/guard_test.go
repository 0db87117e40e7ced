package nft_test

import (
	"bytes"
	"context"
	"log/slog"
	"os/exec"
	"strings"
	"testing"
	"time"

	"sigs.k8s.io/knftables"

	"github.com/rundigitalplatform/rookery/network/nft"
	"github.com/rundigitalplatform/rookery/network/nft/nfttest"
)

// Whatever others do to our table is found and undone; what they do to theirs, and what we do
// ourselves, writes nothing.
func TestGuard(t *testing.T) {
	for _, family := range []knftables.Family{knftables.IPv4Family, knftables.IPv6Family} {
		t.Run(string(family), func(t *testing.T) { guarded(t, family) })
	}
}

func guarded(t *testing.T, family knftables.Family) {
	nfttest.Namespace(t)
	one, two, address := "10.43.0.5", "10.43.0.6", nft.AddressType(family)
	if family == knftables.IPv6Family {
		one, two = "fd43::5", "fd43::6"
	}
	var log bytes.Buffer
	table, err := nft.Open(family, "rookery", slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})))
	must(t, err)
	guard, err := nft.NewGuard(slog.New(slog.DiscardHandler), table)
	must(t, err)
	defer func() { must(t, guard.Close()) }()
	look := func(what string, want bool) {
		t.Helper()
		if got, err := guard.Look(t.Context()); err != nil || got != want {
			t.Errorf("%s: looked %v, %v; want %v", what, got, err, want)
		}
	}
	state := func(more ...string) nft.State {
		s := nft.NewState()
		s.Chains["entry"] = nft.Chain{
			Hook:  &nft.Hook{Type: knftables.FilterType, Hook: knftables.ForwardHook, Priority: knftables.FilterPriority},
			Rules: []string{string(family) + " daddr . meta l4proto . th dport vmap @fronts", "iifname . " + string(family) + " saddr != @names drop"},
		}
		s.Chains["deny"] = nft.Chain{Rules: append([]string{"drop"}, more...)}
		s.Chains["empty"] = nft.Chain{}
		s.Sets["fronts"] = nft.Set{Map: true, Type: address + " . inet_proto . inet_service : verdict", Elements: map[string]string{
			one + " . tcp . 80": "goto deny", two + " . udp . 53": "goto empty",
		}}
		s.Sets["names"] = nft.Set{Type: "ifname . " + address, Elements: map[string]string{"rk0123456789ab . " + one: ""}}
		s.Sets["ports"] = nft.Set{Type: "inet_proto . inet_service", Elements: map[string]string{"tcp . 30080": "", "sctp . 30081": ""}}
		return s
	}
	must(t, table.Set(t.Context(), "s", state()))
	must(t, table.Set(t.Context(), "s", state("accept"))) // without the nft program
	look("after our own writes", false)
	want := nfttest.List(t, family, "rookery")
	run := func(command string) {
		t.Helper()
		command = strings.NewReplacer("OURS", string(family)+" rookery", "ONE", one, "TWO", two, "IP", string(family)).Replace(command)
		if out, err := exec.Command("nft", command).CombinedOutput(); err != nil {
			t.Fatalf("nft %s: %v: %s", command, err, out)
		}
	}
	log.Reset()
	run("add table IP others; add chain IP others deny; add rule IP others deny accept; add chain IP others entry")
	look("after a change of another table", true)
	look("again", false)
	if log.Len() > 0 {
		t.Errorf("another table's change made us write: %s", log.String())
	}
	began := time.Now()
	for _, damage := range []string{
		"flush ruleset",
		"delete table OURS",
		"flush table OURS",
		"flush chain OURS deny",
		"flush chain OURS entry",
		"insert rule OURS deny accept",
		"add rule OURS empty accept",
		"delete element OURS fronts { TWO . udp . 53 }",
		"delete element OURS fronts { TWO . udp . 53 }; add element OURS fronts { TWO . udp . 53 : goto deny }",
		"add element OURS fronts { TWO . udp . 54 : goto deny }",
		"delete element OURS names { rk0123456789ab . ONE }",
		"flush set OURS ports",
		"delete element OURS ports { tcp . 30080 }; add element OURS ports { udp . 30080 }",
		"flush chain OURS entry; delete set OURS names",
	} {
		run(damage)
		look(damage, true)
		if got := nfttest.List(t, family, "rookery"); got != want {
			t.Errorf("after %q:\n%s\nwant:\n%s", damage, got, want)
		}
		look("after the repair", false)
	}
	if n := strings.Count(log.String(), "level=WARN"); n == 0 || n > int(time.Since(began)/time.Minute)+1 {
		t.Errorf("told %d times in %s", n, time.Since(began))
	}
	// Somebody else's change just before ours is not taken for ours.
	run("flush chain OURS deny")
	must(t, table.Set(t.Context(), "s", func() nft.State {
		s := state("accept")
		s.Chains["empty"] = nft.Chain{Rules: []string{"accept"}}
		return s
	}()))
	look("a change before ours", true)
	if got := nfttest.List(t, family, "rookery"); !strings.Contains(got, "drop") {
		t.Errorf("not repaired:\n%s", got)
	}
}

// What could not be written is written once it can be, although nobody changes anything.
func TestGuardRepeatsFailedWrites(t *testing.T) {
	nfttest.Namespace(t)
	table, err := nft.Open(knftables.IPv4Family, "rookery", slog.New(slog.DiscardHandler))
	must(t, err)
	guard, err := nft.NewGuard(slog.New(slog.DiscardHandler), table)
	must(t, err)
	defer func() { must(t, guard.Close()) }()
	state := func(priority string) nft.State {
		s := nft.NewState()
		s.Chains["entry"+priority] = nft.Chain{Hook: &nft.Hook{
			Type: knftables.FilterType, Hook: knftables.ForwardHook, Priority: knftables.BaseChainPriority(priority),
		}, Rules: []string{"drop"}}
		return s
	}
	ended, end := context.WithCancel(t.Context())
	end()
	for _, priority := range []string{"1", "2"} { // without a table, and with one
		if err := table.Set(ended, "s", state(priority)); err == nil {
			t.Fatal("written by a program that did not run")
		}
		if _, err := guard.Look(ended); err == nil {
			t.Error("the repetition did not run either, and was no error")
		}
		if looked, err := guard.Look(t.Context()); err != nil || !looked {
			t.Errorf("after a failed write: looked %v, %v", looked, err)
		}
		if got := nfttest.List(t, knftables.IPv4Family, "rookery"); !strings.Contains(got, "entry"+priority) {
			t.Errorf("not repeated:\n%s", got)
		}
		if looked, err := guard.Look(t.Context()); err != nil || looked {
			t.Errorf("after the repetition: looked %v, %v", looked, err)
		}
	}
}

// What others did before Run is repaired as it begins.
func TestGuardBeginsWithALook(t *testing.T) {
	nfttest.Namespace(t)
	ctx, end := context.WithTimeout(t.Context(), nft.LookAnyway-10*time.Second) // it looks then anyway
	defer end()
	flushed, repaired := false, false
	table, err := nft.Open(knftables.IPv4Family, "rookery", slog.New(slog.NewTextHandler(writer(func(line string) {
		if flushed && strings.Contains(line, "nftables written") {
			repaired = true
			end()
		}
	}), &slog.HandlerOptions{Level: slog.LevelDebug})))
	must(t, err)
	guard, err := nft.NewGuard(slog.New(slog.DiscardHandler), table)
	must(t, err)
	defer func() { must(t, guard.Close()) }()
	s := nft.NewState()
	s.Chains["deny"] = nft.Chain{Rules: []string{"drop"}}
	must(t, table.Set(t.Context(), "s", s))
	if out, err := exec.Command("nft", "flush ruleset").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	flushed = true
	guard.Run(ctx)
	if !repaired {
		t.Error("not repaired")
	}
}

type writer func(line string)

func (w writer) Write(line []byte) (int, error) {
	w(string(line))
	return len(line), nil
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
