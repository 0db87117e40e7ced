package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/rundigitalplatform/rookery/cluster"
	"github.com/rundigitalplatform/rookery/network"
	"github.com/rundigitalplatform/rookery/network/overlay"
	"github.com/rundigitalplatform/rookery/raftstore"
)

const (
	// routesAgain is when what the kernel refused is tried once more.
	routesAgain = 5 * time.Second
	// routeLinger is for how long a dead peer keeps its routes: the Services' rules leave its
	// endpoints first, within a fraction of this, for what they send where no route leads is
	// refused. (A packet to where nobody is any more is sent again, and by then elsewhere.)
	routeLinger = time.Second
)

// reached tells whether a Service may send to a peer's pods. One that has come back is
// reached once its routes are there.
func (p *peer) reached(name string) bool {
	if !p.live.alive(name) {
		return false
	}
	routed := p.routed.Load()
	if routed == nil {
		return true
	}
	has, other := (*routed)[name]
	return has || !other
}

// departures are the peers that died and have their routes still, and since when.
type departures map[string]time.Time

// routed tells whether a peer is to have routes now; had is whether it has them.
func (d departures) routed(name string, alive, had bool, now time.Time) bool {
	since, leaving := d[name]
	switch {
	case alive || !had:
		delete(d, name)
		return alive
	case !leaving:
		d[name] = now
		return true
	case now.Sub(since) < routeLinger:
		return true
	}
	delete(d, name)
	return false
}

// runRoutes keeps the pod network's routes and tunnels in line with the peer
// records (who there is, with which share), the backend that the cluster wants, and
// gossip (where, and alive).
func (p *peer) runRoutes(ctx context.Context) error {
	changed := p.live.subscribe()
	records := make(chan struct{}, 1)
	watching := make(chan error, 1)
	go func() {
		group, ctx := errgroup.WithContext(ctx)
		group.Go(func() error { return p.wakeFor(ctx, cluster.PeersPrefix, records) })
		group.Go(func() error { return p.wakeFor(ctx, cluster.BackendKey, records) })
		watching <- group.Wait()
	}()
	said := "" // of what stays so until a record changes
	leaving := departures{}
	for {
		var again <-chan time.Time
		err, why := p.setRoutes(ctx, leaving), ""
		if len(leaving) > 0 {
			again = time.After(routeLinger / 4)
		}
		if err != nil && ctx.Err() == nil {
			why = err.Error()
			p.unrouted.Store(&why)
		} else {
			p.unrouted.Store(nil)
		}
		switch {
		case why == "":
			said = ""
		case !overlay.OnlyNoAddress(err):
			p.log.Error("routes to the other peers are not as wanted, trying again", "err", err, "in", routesAgain)
			again = time.After(routesAgain)
		case why != said:
			said = why
			p.log.Warn("there are no routes to some pods of other peers", "err", err)
		}
		select {
		case <-ctx.Done():
			return <-watching
		case err := <-watching:
			return err
		case <-changed:
		case <-records:
		case <-again:
		}
	}
}

// wakeFor wakes whenever something under prefix changes, and at first.
func (p *peer) wakeFor(ctx context.Context, prefix string, wake chan<- struct{}) error {
	for ctx.Err() == nil {
		w, err := p.store.Watch(prefix, p.store.Revision())
		if err != nil {
			return fmt.Errorf("watch %s: %w", prefix, err)
		}
		for err == nil {
			select {
			case wake <- struct{}{}:
			default:
			}
			_, err = w.Next(ctx)
		}
		w.Close()
		if ctx.Err() == nil && !errors.Is(err, raftstore.ErrCompacted) {
			return fmt.Errorf("watch %s: %w", prefix, err)
		}
	}
	return nil
}

// setRoutes writes what the routes should be now. leaving is its own, from one call to the next.
func (p *peer) setRoutes(ctx context.Context, leaving departures) error {
	records, err := p.registry.Peers()
	if err != nil {
		return err
	}
	settings := p.id.Settings()
	var peers []network.Peer
	was, routed, back := p.routed.Load(), map[string]bool{}, false
	for _, r := range records {
		if r.Name == p.id.Name() {
			continue
		}
		key, err := wgtypes.ParseKey(r.WireGuardKey)
		if err != nil {
			return fmt.Errorf("read WireGuard key of %s: %w", r.Name, err)
		}
		at := r.Address
		m, _ := p.members.Member(r.Name) // zero: gossip has not met it
		if m.Address.IsValid() {
			at = m.Address
		}
		alive, had := p.live.alive(r.Name), was != nil && (*was)[r.Name]
		routed[r.Name] = leaving.routed(r.Name, alive, had, time.Now())
		back = back || was != nil && routed[r.Name] && !had
		hidden, known := p.port.Hidden(r.Name)
		if !known { // this daemon has just begun; what WireGuard has learnt is not overwritten
			hidden = m.Hidden
		}
		peers = append(peers, network.Peer{
			Name: r.Name, Endpoint: at, Other: r.OtherAddress, PodCIDRs: settings.PeerCIDRs(r.PodCIDR), WireGuardKey: network.Key(key),
			Started: m.WireGuardStarted, Alive: routed[r.Name],
			Hidden: hidden, HiddenFrom: p.keepers.Meeting(r.Name).Undialled != "",
		})
	}
	err = errors.Join(p.network.SetAddress(ctx, p.self().Address), p.network.Use(ctx, p.registry.Backend()), p.network.SetPeers(ctx, peers))
	p.routed.Store(&routed)
	maps.DeleteFunc(leaving, func(name string, _ time.Time) bool { _, there := routed[name]; return !there })
	if back {
		p.live.wake()
	}
	return err
}
