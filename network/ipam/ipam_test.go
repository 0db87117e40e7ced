package ipam

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func open(t *testing.T, path string, prefixes ...string) *Pool {
	t.Helper()
	var ranges []netip.Prefix
	for _, p := range prefixes {
		ranges = append(ranges, netip.MustParsePrefix(p))
	}
	p, err := Open(path, ranges...)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func allocate(t *testing.T, p *Pool, uid string) string {
	t.Helper()
	a, err := p.Allocate(uid)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Trim(fmt.Sprint(a), "[]")
}

func TestAddressesAreKeptAndReusedLast(t *testing.T) {
	path := filepath.Join(t.TempDir(), "network", "ipam.json")
	p := open(t, path, "10.42.7.0/29") // .1 is the peer's, .2 to .6 are pods'
	for i := 2; i <= 4; i++ {
		if got, want := allocate(t, p, fmt.Sprint("pod", i)), fmt.Sprint("10.42.7.", i); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
	if got := allocate(t, p, "pod3"); got != "10.42.7.3" {
		t.Errorf("asked again: %s", got)
	}
	if err := p.Release("pod2", "pod3", "nobody"); err != nil {
		t.Fatal(err)
	}
	p = open(t, path, "10.42.7.0/29") // a restart
	if got := allocate(t, p, "pod4"); got != "10.42.7.4" {
		t.Errorf("after a restart: %s", got)
	}
	for i, want := range []string{"10.42.7.5", "10.42.7.6", "10.42.7.2", "10.42.7.3"} {
		if got := allocate(t, p, fmt.Sprint("new", i)); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
	if _, err := p.Allocate("one too many"); !errors.Is(err, ErrExhausted) {
		t.Errorf("error %v, want %v", err, ErrExhausted)
	}
	if len(p.All()) != 5 {
		t.Errorf("allocations: %v", p.All())
	}
	if p = open(t, path, "10.42.8.0/29"); len(p.All()) != 0 {
		t.Errorf("allocations of another range were taken over: %v", p.All())
	}
}

func TestWhatCannotBeWrittenIsNotAllocated(t *testing.T) {
	dir := t.TempDir()
	blocker := filepath.Join(dir, "file")
	if err := os.WriteFile(blocker, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	p := open(t, filepath.Join(dir, "ipam.json"), "10.42.7.0/29")
	p.path = filepath.Join(blocker, "ipam.json")
	if _, err := p.Allocate("a"); err == nil {
		t.Fatal("no error")
	}
	if all := p.All(); len(all) > 0 {
		t.Errorf("allocated all the same: %v", all)
	}
	p.path = filepath.Join(dir, "ipam.json")
	if got := allocate(t, p, "b"); got != "10.42.7.2" {
		t.Errorf("got %s: an address was lost", got)
	}
}

func TestBrokenFileSaysSo(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ipam.json")
	if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(path, netip.MustParsePrefix("10.42.7.0/24")); err == nil {
		t.Error("no error")
	}
}

func TestAddressesOfBothFamilies(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ipam.json")
	p := open(t, path, "10.42.7.0/30", "fd42:0:0:7::/64")
	if got := allocate(t, p, "a"); got != "10.42.7.2 fd42:0:0:7::2" {
		t.Errorf("got %s", got)
	}
	if _, err := p.Allocate("b"); !errors.Is(err, ErrExhausted) {
		t.Errorf("error %v, want %v", err, ErrExhausted)
	}
	p = open(t, path, "10.42.7.0/30", "fd42:0:0:7::/64")
	if got := allocate(t, p, "a"); got != "10.42.7.2 fd42:0:0:7::2" {
		t.Errorf("after a restart: %s", got)
	}
	if err := p.Release("a"); err != nil {
		t.Fatal(err)
	}
	// What failed has taken nothing, and there is enough of IPv6 to take another each time.
	if got := allocate(t, p, "b"); got != "10.42.7.2 fd42:0:0:7::3" {
		t.Errorf("got %s", got)
	}
	if n := len(p.ranges[1].Freed); n != 0 {
		t.Errorf("%d released addresses are remembered for ever", n)
	}
	if p = open(t, path, "fd42:0:0:7::/64", "10.42.7.0/30"); len(p.All()) != 0 {
		t.Errorf("taken over in another order: %v", p.All())
	}
}

func TestVersion1IsRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ipam.json")
	old := `{"version":1,"prefix":"10.42.7.0/29","pods":{"a":"10.42.7.2","c":"10.42.7.4"},"freed":["10.42.7.3"],"next":"10.42.7.5"}`
	if err := os.WriteFile(path, []byte(old), 0o600); err != nil {
		t.Fatal(err)
	}
	p := open(t, path, "10.42.7.0/29")
	for _, want := range []struct{ uid, addr string }{{"a", "10.42.7.2"}, {"c", "10.42.7.4"}, {"d", "10.42.7.5"}} {
		if got := allocate(t, p, want.uid); got != want.addr {
			t.Errorf("%s: got %s, want %s", want.uid, got, want.addr)
		}
	}
	p = open(t, path, "10.42.7.0/29") // by now of version 2
	for i, want := range []string{"10.42.7.6", "10.42.7.3"} {
		if got := allocate(t, p, fmt.Sprint("new", i)); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}
