package e2e

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"
)

// brokenWays are rules between peers that live: WireGuard does not pass between h1 and h2, and
// on h3 neither the API's Service nor DNS answers. They come before everything of the cluster's.
var brokenWays = map[string]string{
	"h1": "ip saddr 10.77.0.2 udp dport 51820 drop; ip daddr 10.77.0.2 udp dport 51820 drop",
	"h3": "ip daddr 10.43.0.1 tcp dport 443 drop; ip daddr " + clusterDNS + " meta l4proto { tcp, udp } th dport 53 drop",
}

// probe is a line of the check.
type probe struct {
	from, what, to string
	reached        bool
}

// broken tells whether the rules of [brokenWays] are in the way.
func (p probe) broken() bool {
	from := strings.TrimPrefix(p.from, "a pod on ")
	if p.what == "Service" || p.what == "DNS" {
		return from == "h3"
	}
	to := p.to[strings.LastIndex(p.to, " ")+1:] // a peer, or a pod on it
	return p.what != "path" && (from == "h1" && to == "h2" || from == "h2" && to == "h1")
}

// The check names each way that is broken, from where to where, and no other; and has nothing to
// say when it is whole again.
func TestNetCheckNamesTheBrokenWays(t *testing.T) {
	allReady(t, patience)
	for _, h := range shared.Peers() {
		loader(t, h.Name) // so that there is a pod to try on each
	}
	whole := func() error {
		_, err := netCheck(t)
		return err
	}
	eventually(t, 2*time.Minute, whole)
	mend := func(ctx context.Context) {
		for h := range brokenWays {
			if out, err := shared.Run(ctx, h, "sh", "-c", "nft list table ip breaks >/dev/null 2>&1 || exit 0; nft delete table ip breaks"); err != nil {
				t.Error(out, err)
			}
		}
	}
	t.Cleanup(func() { mend(context.Background()) })
	for h, rules := range brokenWays {
		text := "table ip breaks {\n"
		for _, hook := range []string{"prerouting", "output"} {
			text += fmt.Sprintf("chain %s { type filter hook %[1]s priority -310; %s; }\n", hook, rules)
		}
		must(t, h, "sh", "-c", "nft -f - <<'END'\n"+text+"}\nEND")
	}
	eventually(t, 2*time.Minute, func() error { // a busy machine may miss another way, too
		all, err := netCheck(t)
		if err == nil || !strings.Contains(err.Error(), "the network is not whole") {
			return fmt.Errorf("it ended with %v, and what it said is %v", err, all)
		}
		broken, wrong := 0, []error(nil)
		for _, p := range all {
			if p.broken() {
				broken++
			}
			if p.reached == p.broken() {
				wrong = append(wrong, fmt.Errorf("%s from %s to %s: reached %v", p.what, p.from, p.to, p.reached))
			}
		}
		// Of each of h1 and h2, the peer and a pod on it try the other peer and a pod on that; of h3, both try both.
		if broken != 2*2*2+2*2 {
			wrong = append(wrong, fmt.Errorf("%d ways are tried that are broken: %v", broken, all))
		}
		return errors.Join(wrong...)
	})
	mend(t.Context())
	eventually(t, 2*time.Minute, whole)
}

// netCheck is what the check says, and how it ended.
func netCheck(t *testing.T) (all []probe, err error) {
	t.Helper()
	out, err := shared.Run(t.Context(), "h2", "rookery", "net", "check")
	columns := regexp.MustCompile(` {3,}`)
	for line := range strings.Lines(out) {
		if c := columns.Split(line, 4); len(c) == 4 && c[0] != "FROM" {
			all = append(all, probe{c[0], c[1], c[2], !strings.HasPrefix(c[3], "NO: ")})
		}
	}
	return all, err
}
