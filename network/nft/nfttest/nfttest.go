// Package nfttest is for the tests of those who write rules: it compares what a walk
// through many states leaves in the kernel with what a fresh start with the last of them
// would have made. It uses the real nft program, in a network namespace of its own.
package nfttest

import (
	"fmt"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"sigs.k8s.io/knftables"

	"github.com/rundigitalplatform/rookery/network/nft"
)

// Namespace moves the test into a new network namespace until it ends. The test must not
// start goroutines that rely on it. Without root the test is skipped if
// ROOKERY_SKIP_ROOT=1, and fails otherwise.
func Namespace(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("ROOKERY_SKIP_ROOT") == "1" {
			t.Skip("needs root")
		}
		t.Fatal("needs root: run as root, or set ROOKERY_SKIP_ROOT=1 to go without")
	}
	runtime.LockOSThread()
	home, err := os.Open(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()))
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); err != nil {
			t.Fatal(err) // the thread stays locked, and ends with the goroutine
		}
		home.Close()
		runtime.UnlockOSThread()
	})
}

// Walk brings one table through steps states that next makes, now and then by a new
// [nft.Table] that finds what the one before has left, and compares the kernel's rules after
// each step with those of a fresh start. A state is given as its change since the one before
// too, by those who write changes; nil for who does not.
func Walk(t *testing.T, family knftables.Family, steps int, next func(step int) (nft.State, *nft.Patch)) {
	t.Helper()
	table := direct(t, family)
	for step := range steps {
		state, change := next(step)
		var err error
		if restarted := step%7 == 3; step > 0 && change != nil && !restarted {
			err = table.Patch(t.Context(), "s", *change)
		} else {
			if restarted {
				table = direct(t, family)
			}
			err = table.Set(t.Context(), "s", clone(state))
		}
		if err != nil {
			t.Fatalf("step %d: %v", step, err)
		}
		fresh := open(t, family, "fresh")
		if err := fresh.Set(t.Context(), "s", state); err != nil {
			t.Fatalf("step %d: a fresh start: %v", step, err)
		}
		// What nothing refers to any more is emptied at once, and goes later.
		if got, want := withoutEmpty(List(t, family, "walk")), withoutEmpty(List(t, family, "fresh")); got != want {
			t.Fatalf("step %d: after the walk:\n%s\nfresh:\n%s", step, got, want)
		}
		if err := fresh.Delete(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

// clone is for a table that will change it.
func clone(s nft.State) nft.State {
	out := nft.State{Chains: maps.Clone(s.Chains), Sets: maps.Clone(s.Sets)}
	for name, set := range out.Sets {
		set.Elements = maps.Clone(set.Elements)
		out.Sets[name] = set
	}
	return out
}

// open is one that writes all by the nft program.
func open(t testing.TB, family knftables.Family, name string) *nft.Table {
	t.Helper()
	kernel, err := knftables.New(family, name)
	if err != nil {
		t.Fatal(err)
	}
	return nft.New(kernel, slog.New(slog.DiscardHandler))
}

// direct is a table that writes what it can without the nft program.
func direct(t testing.TB, family knftables.Family) *nft.Table {
	t.Helper()
	table, err := nft.Open(family, "walk", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return table
}

// List is the table in the kernel as text, without what counts and in an order that does not
// tell how it came there.
func List(t testing.TB, family knftables.Family, name string) string {
	t.Helper()
	out, err := exec.Command("nft", "--stateless", "list", "table", string(family), name).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if strings.TrimSpace(string(out)) == fmt.Sprintf("table %s %s {\n}", family, name) {
		return ""
	}
	blocks := strings.Split(strings.TrimSpace(elements.ReplaceAllStringFunc(string(out), func(s string) string {
		inside := strings.Split(s[strings.Index(s, "{")+1:strings.LastIndex(s, "}")], ",")
		for i := range inside {
			inside[i] = strings.TrimSpace(inside[i])
		}
		slices.Sort(inside)
		return "elements = " + strings.Join(inside, ", ")
	})), "\n\n")
	blocks[0] = strings.TrimPrefix(blocks[0], fmt.Sprintf("table %s %s {\n", family, name))
	last := len(blocks) - 1
	blocks[last] = strings.TrimSuffix(blocks[last], "\n}")
	slices.Sort(blocks)
	return strings.Join(blocks, "\n\n")
}

var (
	elements = regexp.MustCompile(`elements = \{[^}]*\}`)
	empty    = regexp.MustCompile(`(?m)^\tchain \S+ \{\n(\t\ttype .*\n)?\t\}\n*`)
)

func withoutEmpty(rules string) string { return strings.TrimSpace(empty.ReplaceAllString(rules, "")) }
