package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/rundigitalplatform/rookery/cluster"
	"github.com/rundigitalplatform/rookery/network"
	"github.com/rundigitalplatform/rookery/network/overlay"
	"github.com/rundigitalplatform/rookery/raftstore"
)

// routesAgain is when what the kernel refused is tried once more.
const routesAgain = 5 * time.Second

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
	for {
		var again <-chan time.Time
		err, why := p.setRoutes(ctx), ""
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

func (p *peer) setRoutes(ctx context.Context) error {
	records, err := p.registry.Peers()
	if err != nil {
		return err
	}
	settings := p.id.Settings()
	var peers []network.Peer
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
		peers = append(peers, network.Peer{
			Name: r.Name, Endpoint: at, Other: r.OtherAddress, PodCIDRs: settings.PeerCIDRs(r.PodCIDR), WireGuardKey: network.Key(key),
			Started: m.Started, Alive: p.live.alive(r.Name),
			Hidden: p.port.Hidden(r.Name), HiddenFrom: p.keepers.Meeting(r.Name).Undialled != "",
		})
	}
	return errors.Join(p.network.SetAddress(ctx, p.self().Address), p.network.Use(ctx, p.registry.Backend()), p.network.SetPeers(ctx, peers))
}
