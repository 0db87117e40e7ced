package main

import (
	"context"
	"errors"
	"fmt"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/rundigitalplatform/rookery/cluster"
	"github.com/rundigitalplatform/rookery/network"
	"github.com/rundigitalplatform/rookery/raftstore"
)

// runRoutes keeps the pod network's routes and tunnels in line with the peer
// records (who there is, with which share) and gossip (where, and alive).
func (p *peer) runRoutes(ctx context.Context) error {
	changed := p.live.subscribe()
	records := make(chan struct{}, 1)
	watching := make(chan error, 1)
	go func() { watching <- p.watchRecords(ctx, records) }()
	for {
		if err := p.setRoutes(ctx); err != nil && ctx.Err() == nil {
			p.log.Error("routes to the other peers are not as wanted", "err", err)
		}
		select {
		case <-ctx.Done():
			return <-watching
		case err := <-watching:
			return err
		case <-changed:
		case <-records:
		}
	}
}

// watchRecords wakes whenever a peer record changes.
func (p *peer) watchRecords(ctx context.Context, wake chan<- struct{}) error {
	for ctx.Err() == nil {
		w, err := p.store.Watch(cluster.PeersPrefix, p.store.Revision())
		if err != nil {
			return fmt.Errorf("watch peer records: %w", err)
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
			return fmt.Errorf("watch peer records: %w", err)
		}
	}
	return nil
}

func (p *peer) setRoutes(ctx context.Context) error {
	records, err := p.registry.Peers()
	if err != nil {
		return err
	}
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
		if m, ok := p.members.Member(r.Name); ok && m.Address.IsValid() {
			at = m.Address
		}
		peers = append(peers, network.Peer{Name: r.Name, Endpoint: at, PodCIDR: r.PodCIDR, WireGuardKey: network.Key(key), Alive: p.live.alive(r.Name)})
	}
	return p.network.SetPeers(ctx, peers)
}
