package policy

import (
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// What seemed an answer of a connection that was ended is let be once that is allowed again.
func TestAnswersOfWhatIsAllowedAgain(t *testing.T) {
	direction := func(from, to string, fromPort, toPort uint16) netlink.IPTuple {
		return netlink.IPTuple{
			Protocol: unix.IPPROTO_UDP, SrcIP: netip.MustParseAddr(from).AsSlice(), DstIP: netip.MustParseAddr(to).AsSlice(),
			SrcPort: fromPort, DstPort: toPort,
		}
	}
	const client, server = "10.42.2.2", "10.42.1.2"
	asked := direction(client, server, 40000, 8080)
	answer := direction(server, client, 8080, 40000)
	began, answered := &netlink.ConntrackFlow{Forward: asked, Reverse: answer}, &netlink.ConntrackFlow{Forward: answer, Reverse: asked}
	under := func(policy string) model {
		t.Helper()
		m, err := compile(world(t, policy), self)
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	nobody, everybody := under("{podSelector: {}, ingress: []}"), under("{podSelector: {}, ingress: [{}]}")
	d := disallowed{model: nobody, answers: map[tuple]flow{}}
	if !d.MatchConntrackFlow(began) || !d.MatchConntrackFlow(answered) {
		t.Fatal("a connection that is not allowed, or its answers, go on")
	}
	if d = d.under(nobody); !d.MatchConntrackFlow(answered) {
		t.Error("the answers go on after a change that does not allow them")
	}
	if d = d.under(everybody); d.MatchConntrackFlow(began) || d.MatchConntrackFlow(answered) {
		t.Error("what is allowed again is ended")
	}
}
