package cluster

import (
	"net/netip"
	"time"

	"github.com/hashicorp/memberlist"
)

// The timing of a death among three peers. Each of the two survivors probes the
// dead one within 3 intervals at worst (1.2 s, both at once seldom), the probe fails
// at the end of its interval (0.4 s), and the suspicion lasts for 2 intervals (0.8 s):
// about 1.6 s as a rule, 2.4 s at worst.
const (
	// probeInterval: one ping a peer and interval, 2.5 small packets a second however many peers there are.
	probeInterval = 400 * time.Millisecond
	// probeTimeout is far above a LAN's round trip; after it the probe goes on
	// over other peers and TCP until the interval ends. Twice the timeout is less
	// than the interval, so that the helpers' "I cannot reach it either" comes in time.
	probeTimeout = 150 * time.Millisecond
	// suspicionMult 2 gives the accused two intervals to refute, three rounds of
	// gossip. More would only make every failover longer.
	suspicionMult = 2
	// gossipInterval spreads news; without news nothing is sent, but looked for.
	gossipInterval = 250 * time.Millisecond
	// streamTimeout bounds a full exchange over TCP. With the cable out it is how
	// long a try to rejoin hangs, so it is short.
	streamTimeout = 2 * time.Second
	// pushPull is memberlist's own anti-entropy; the rejoiner does the urgent part.
	pushPull = 30 * time.Second
)

func (m *Members) gossipConfig(addr netip.Addr) *memberlist.Config {
	c := memberlist.DefaultLANConfig()
	c.Name = m.cfg.Name
	c.BindAddr, c.BindPort = m.cfg.Bind.Addr().String(), int(m.cfg.Bind.Port())
	c.AdvertiseAddr, c.AdvertisePort = addr.String(), int(m.cfg.Bind.Port())

	c.SecretKey = m.cfg.Key
	c.GossipVerifyIncoming, c.GossipVerifyOutgoing = true, true

	c.ProbeInterval, c.ProbeTimeout = probeInterval, probeTimeout
	c.SuspicionMult = suspicionMult
	c.SuspicionMaxTimeoutMult = 1
	c.AwarenessMaxMultiplier = 2 // a busy board may take 0.8 s for a probe, not 3.2 s
	c.GossipInterval = gossipInterval
	c.GossipToTheDeadTime = 30 * time.Second
	c.TCPTimeout = streamTimeout
	c.PushPullInterval = pushPull
	// A dead peer that comes back with another address (DHCP) is taken at once;
	// a living one is a conflict.
	c.DeadNodeReclaimTime = time.Millisecond
	c.EnableCompression = false // messages are small, and CPU is what boards lack

	c.Delegate = metaDelegate{current: m.meta, log: m.cfg.Log}
	c.Events = events{table: m.table, log: m.cfg.Log}
	c.Alive = admission{self: m.cfg.Name, allowed: m.cfg.Allowed}
	c.Conflict = conflicts{log: m.cfg.Log}
	c.Ping = pings{table: m.table, applied: m.cfg.Applied}
	c.LogOutput = logWriter{m.cfg.Log}
	return c
}
