package nft

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"sigs.k8s.io/knftables"
)

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func dump(t *testing.T, fake *knftables.Fake, table *Table) string {
	t.Helper()
	if done, err := table.Sweep(t.Context()); err != nil || !done {
		t.Fatalf("sweep: %v, %v", done, err)
	}
	return fake.Dump()
}

// random is a state whose chains, sets and elements refer to each other as ours do.
func random(r *rand.Rand) State {
	s := NewState()
	all := map[string]string{}
	for i := range r.IntN(6) {
		name := fmt.Sprintf("chain-%d", i)
		var rules []string
		for range r.IntN(3) {
			rules = append(rules, fmt.Sprintf("ip saddr 10.0.0.%d accept", r.IntN(4)))
		}
		if r.IntN(2) == 0 {
			set := fmt.Sprintf("affinity-%d", i)
			s.Sets[set] = Set{Type: "ipv4_addr", Timeout: time.Hour}
			rules = append(rules, fmt.Sprintf("update @%s { ip saddr }", set))
		}
		s.Chains[name] = Chain{Rules: rules}
		if r.IntN(4) > 0 {
			all[fmt.Sprintf("10.43.0.%d . tcp . 80", r.IntN(8))] = "goto " + name
		}
	}
	s.Sets["map"] = Set{Map: true, Type: "ipv4_addr . inet_proto . inet_service : verdict", Elements: all}
	s.Chains["entry"] = Chain{Rules: []string{"ip daddr . meta l4proto . th dport vmap @map"}}
	return s
}

// between is the patch that makes now of was.
func between(was, now State) Patch {
	p := NewPatch()
	for name := range was.Chains {
		p.Chains[name] = nil
	}
	for name, c := range now.Chains {
		p.Chains[name] = &c
	}
	for name := range was.Sets {
		p.Sets[name] = nil
	}
	for name, set := range now.Sets {
		if _, ok := was.Sets[name]; ok && name == "map" {
			delete(p.Sets, name) // by its elements
			for key := range was.Sets[name].Elements {
				p.Elements[Element{name, key}] = nil
			}
			for key, value := range set.Elements {
				p.Elements[Element{name, key}] = &value
			}
			continue
		}
		p.Sets[name] = &set
	}
	return p
}

// faulty is a kernel that, now and then, refuses what it is given or has done it although it says no.
type faulty struct {
	knftables.Interface
	rand *rand.Rand
}

var errFault = errors.New("no buffer space")

func (f faulty) Run(ctx context.Context, tx *knftables.Transaction) error {
	switch f.rand.IntN(8) {
	case 0:
		return errFault
	case 1:
		return errors.Join(errFault, f.Interface.Run(ctx, tx))
	}
	return f.Interface.Run(ctx, tx)
}

// A walk between states, given whole or as changes, some writes of which fail or start anew over what
// is there, ends in the same text as a fresh start.
func TestAnyWalkEndsWhereAFreshStartDoes(t *testing.T) {
	for seed := range uint64(60) {
		r := rand.New(rand.NewPCG(seed, 1))
		fake := knftables.NewFake(knftables.IPv4Family, "rookery")
		kernel := faulty{fake, r}
		table := New(kernel, quiet(), "s")
		var last State
		known := false // the table has last
		for step := range 20 {
			was := last
			last = random(r)
			var err error
			if known && r.IntN(2) == 0 {
				err = table.Patch(t.Context(), "s", between(was, last))
			} else {
				err = table.Set(t.Context(), "s", clone(last))
				known = true // even if it failed
			}
			if err != nil && !errors.Is(err, errFault) {
				t.Fatalf("seed %d, step %d: %v", seed, step, err)
			}
			switch r.IntN(6) {
			case 0:
				table, known = New(kernel, quiet(), "s"), false // a restart
			case 1:
				if _, err := table.Sweep(t.Context()); err != nil && !errors.Is(err, errFault) {
					t.Fatalf("seed %d, step %d: sweep: %v", seed, step, err)
				}
			}
		}
		kernel.rand = rand.New(never{})
		table.nft = kernel
		if known {
			// What failed is done by whatever comes next.
			if err := table.Patch(t.Context(), "s", NewPatch()); err != nil {
				t.Fatal(err)
			}
		} else if err := table.Set(t.Context(), "s", clone(last)); err != nil {
			t.Fatal(err)
		}
		got := dump(t, fake, table)
		freshFake := knftables.NewFake(knftables.IPv4Family, "rookery")
		fresh := New(freshFake, quiet(), "s")
		if err := fresh.Set(t.Context(), "s", last); err != nil {
			t.Fatal(err)
		}
		if want := dump(t, freshFake, fresh); sorted(got) != sorted(want) {
			t.Fatalf("seed %d: after the walk:\n%s\nfresh:\n%s", seed, got, want)
		}
	}
}

// sorted has the elements last, which have no order.
func sorted(dump string) string {
	var rest, elements []string
	for line := range strings.Lines(dump) {
		if strings.HasPrefix(line, "add element") {
			elements = append(elements, line)
		} else {
			rest = append(rest, line)
		}
	}
	slices.Sort(elements)
	return strings.Join(append(rest, elements...), "")
}

// never makes a faulty kernel well again.
type never struct{}

func (never) Uint64() uint64 { return ^uint64(0) }

// clone is for a table that will change it.
func clone(s State) State {
	out := State{Chains: maps.Clone(s.Chains), Sets: maps.Clone(s.Sets)}
	for name, set := range out.Sets {
		set.Elements = maps.Clone(set.Elements)
		out.Sets[name] = set
	}
	return out
}

func TestPatchNeedsASection(t *testing.T) {
	table := New(knftables.NewFake(knftables.IPv4Family, "rookery"), quiet())
	if err := table.Patch(t.Context(), "s", NewPatch()); err == nil || !strings.Contains(err.Error(), "was not set") {
		t.Errorf("a patch of nothing: %v", err)
	}
}

func TestOnlyTheDifferenceIsWritten(t *testing.T) {
	fake := knftables.NewFake(knftables.IPv4Family, "rookery")
	table := New(fake, quiet())
	state := func(second string) State {
		s := NewState()
		s.Chains["one"] = Chain{Rules: []string{"ip saddr 10.0.0.1 drop"}}
		s.Chains["two"] = Chain{Rules: []string{second}}
		s.Sets["set"] = Set{Type: "ipv4_addr", Elements: map[string]string{"10.0.0.1": "", "10.0.0.2": ""}}
		return s
	}
	set := func(s State) {
		t.Helper()
		if err := table.Set(t.Context(), "s", s); err != nil {
			t.Fatal(err)
		}
	}
	set(state("drop"))
	first := fake.LastTransaction
	set(state("drop"))
	if fake.LastTransaction != first {
		t.Errorf("nothing changed, yet this was written:\n%s", fake.LastTransaction)
	}
	table = New(fake, quiet()) // a restart reads, and writes nothing either
	set(state("drop"))
	if fake.LastTransaction != first {
		t.Errorf("the restart wrote:\n%s", fake.LastTransaction)
	}
	set(state("accept"))
	c := Chain{Rules: []string{"accept"}}
	want := "flush chain ip rookery two\nadd rule ip rookery two accept comment \"" + c.mark() + "\"\n"
	if got := fake.LastTransaction.String(); got != want {
		t.Errorf("wrote:\n%s\nwant:\n%s", got, want)
	}
}

func TestSectionsThatAreStillToComeAreLeftAlone(t *testing.T) {
	fake := knftables.NewFake(knftables.IPv4Family, "rookery")
	pods, services := NewState(), NewState()
	pods.Sets["pods"] = Set{Type: "ipv4_addr", Elements: map[string]string{"10.0.0.1": ""}}
	services.Chains["service"] = Chain{Rules: []string{"drop"}}
	table := New(fake, quiet(), "pods", "services")
	for name, s := range map[string]State{"pods": pods, "services": services} {
		if err := table.Set(t.Context(), name, s); err != nil {
			t.Fatal(err)
		}
	}
	before, last := fake.Dump(), fake.LastTransaction

	table = New(fake, quiet(), "pods", "services")
	for name, s := range map[string]State{"pods": pods, "services": services} {
		if err := table.Set(t.Context(), name, s); err != nil {
			t.Fatal(err)
		}
		if fake.Dump() != before || fake.LastTransaction != last {
			t.Fatalf("setting %s after a restart wrote:\n%s", name, fake.LastTransaction)
		}
	}
	// Once all are there, what none of them wants goes.
	if err := table.Set(t.Context(), "services", NewState()); err != nil {
		t.Fatal(err)
	}
	if got := dump(t, fake, table); got == before {
		t.Error("the service's chain is still there")
	}
}

func TestVerifyRepairsAFlush(t *testing.T) {
	fake := knftables.NewFake(knftables.IPv4Family, "rookery")
	table := New(fake, quiet())
	s := NewState()
	s.Chains["one"] = Chain{Rules: []string{"drop"}}
	s.Sets["set"] = Set{Type: "ipv4_addr", Elements: map[string]string{"10.0.0.1": ""}}
	if err := table.Set(t.Context(), "s", s); err != nil {
		t.Fatal(err)
	}
	before, last := fake.Dump(), fake.LastTransaction
	if _, err := table.Verify(t.Context()); err != nil || fake.LastTransaction != last {
		t.Fatalf("verify of an untouched table: %v, wrote:\n%s", err, fake.LastTransaction)
	}
	tx := fake.NewTransaction()
	tx.Delete(&knftables.Table{})
	if err := fake.Run(t.Context(), tx); err != nil {
		t.Fatal(err)
	}
	if _, err := table.Verify(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := fake.Dump(); got != before {
		t.Errorf("after the repair:\n%s\nwant:\n%s", got, before)
	}
}

// What a section gives up is removed, also while another has not been set yet.
func TestAPendingSectionKeepsNothingOfTheOthers(t *testing.T) {
	fake := knftables.NewFake(knftables.IPv4Family, "rookery")
	table := New(fake, slog.New(slog.DiscardHandler), "a", "late")
	state := func(names ...string) State {
		s := NewState()
		for _, n := range names {
			s.Chains[n] = Chain{Rules: []string{"accept"}}
		}
		return s
	}
	for _, s := range []State{state("one", "two"), state("one")} {
		if err := table.Set(t.Context(), "a", s); err != nil {
			t.Fatal(err)
		}
	}
	if dump := fake.Dump(); !strings.Contains(dump, "add rule ip rookery one") || strings.Contains(dump, "add rule ip rookery two") {
		t.Error(dump)
	}
}

// Who goes on writing to our table is undone ever more seldom, who writes to theirs is no reason to.
func TestPauseBetweenLooks(t *testing.T) {
	for _, c := range []struct {
		pause    time.Duration
		repaired bool
		err      error
		want     time.Duration
	}{
		{settle, true, nil, verifyPause},
		{verifyPause, true, nil, 2 * verifyPause},
		{8 * verifyPause, true, nil, verifyMax},
		{verifyMax, true, nil, verifyMax},
		{verifyMax, false, nil, verifyPause},
		{40 * time.Second, true, errFault, lookAnyway},
	} {
		if got := next(c.pause, c.repaired, c.err); got != c.want {
			t.Errorf("%s after %s (repaired: %v, %v), want %s", got, c.pause, c.repaired, c.err, c.want)
		}
	}
}
