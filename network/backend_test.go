package network_test

import (
	"fmt"
	"testing"
	"time"
)

// Each backend follows each other one on a running cluster: pods of two peers are apart
// while one peer has changed and the other has not, a connection lives through it, and
// nothing of the backend before is left.
func TestBackendChanges(t *testing.T) {
	for _, families := range []string{"4", "64"} {
		t.Run(families, func(t *testing.T) { backendChanges(t, newLabOf(t, 2, "wireguard", families)) })
	}
}

func backendChanges(t *testing.T, l *lab) {
	h1, h2 := l.hosts[0], l.hosts[1]
	h1.up()
	h2.up()
	l.peers()
	a, b := h1.pod("a"), h2.pod("b")
	held := a.hold(on(b.addr, 8080))
	say := func(words string) {
		t.Helper()
		eventually(t, 20*time.Second, func() string {
			if got := held(words); got != words {
				return fmt.Sprintf("%q through the connection that was there came back as %q", words, got)
			}
			return ""
		})
	}
	say("before")
	for _, backend := range []string{"vxlan", "direct", "wireguard", "direct", "vxlan", "wireguard", "vxlan"} {
		h1.ask(request{Verb: "use", Backend: backend})
		h2.ask(request{Verb: "use", Backend: backend})
		h2.ask(request{Verb: "use", Backend: backend}) // once more changes nothing
		for i := range a.addrs {
			only(t, a.dial("tcp", on(b.addrs[i], 8080), 2), "b "+a.addrs[i])
			only(t, b.dial("tcp", on(a.addrs[i], 8080), 2), "a "+b.addrs[i])
		}
		// Larger than what the smallest backend carries: the pods' devices were made for another.
		say(fmt.Sprintf("%s %01500d", backend, 0))
	}
	if _, err := h1.try(request{Verb: "use", Backend: "pigeons"}); err == nil {
		t.Error("a backend that there is not was taken")
	}
	only(t, a.dial("tcp", on(b.addr, 8080), 1), "b "+a.addr)
}
