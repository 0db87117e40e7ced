package main

import (
	"context"
	"errors"
	"net/netip"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/rundigitalplatform/rookery/cluster"
	"github.com/rundigitalplatform/rookery/cluster/voters"
	"github.com/rundigitalplatform/rookery/controller"
	"github.com/rundigitalplatform/rookery/scheduler"
)

// again is how soon leader work that failed is begun anew within its term.
const again = time.Second

// lead is a term of leadership: it returns when ctx, and with it the term, ends.
// New term, new objects: nothing here outlives the call. What fails is logged
// and begun again, because giving up would leave the cluster without it while
// this peer goes on leading.
func (p *peer) lead(ctx context.Context) error {
	log := p.log.With("term", p.store.Status().Term)
	var g errgroup.Group
	tend := func(name string, run func(context.Context) error) {
		g.Go(func() error {
			for ctx.Err() == nil {
				err := run(ctx)
				if ctx.Err() != nil {
					break
				}
				log.Error("leader work failed, beginning again", "work", name, "err", err)
				select {
				case <-ctx.Done():
				case <-time.After(again):
				}
			}
			return nil
		})
	}
	tend("voters", p.runVoters)
	tend("controllers and scheduler", func(ctx context.Context) error {
		// These read from this peer's informers and write through its API.
		for p.api.Ready() != nil {
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(10 * time.Millisecond):
			}
		}
		if err := p.api.Bootstrap(ctx); err != nil {
			return err
		}
		work, workCtx := errgroup.WithContext(ctx)
		start(work, workCtx, map[string]func(context.Context) error{
			"controllers": p.runControllers,
			"scheduler": func(ctx context.Context) error {
				term := controller.NewTerm(p.api.Informers(), p.api.StartInformers)
				err := scheduler.Run(ctx, scheduler.Config{ClientConfig: p.api.ClientConfig, Informers: term, Logger: p.log.With("room", "scheduler")})
				return errors.Join(err, term.Close())
			},
			"service addresses": func(ctx context.Context) error { p.api.NewRepair().Run(ctx); return nil },
			"definitions":       p.api.RunDefinitions,
			"ingress":           p.runIngressStatus,
			"certificates":      p.runCertificates,
			"extension servers": func(ctx context.Context) error {
				term := controller.NewTerm(p.api.Informers(), p.api.StartInformers)
				return errors.Join(p.api.WatchExtensions(ctx, term), term.Close())
			},
		})
		return work.Wait()
	})
	return g.Wait()
}

func (p *peer) runControllers(ctx context.Context) error {
	ca, key := p.id.CAFiles()
	pool, err := p.cfg.balancerAddresses()
	if err != nil {
		return err
	}
	return controller.Run(ctx, controller.Config{
		ClientConfig: p.api.ClientConfig, Informers: p.api.Informers(), StartInformers: p.api.StartInformers,
		Members: membership{p}, RootCA: p.id.CAPEM(), CAFile: ca, CAKeyFile: key, TokenKey: p.id.ServiceAccountKey(), LoadBalancerAddresses: pool,
		Logger: p.log.With("room", "controller"),
	})
}

func (p *peer) runVoters(ctx context.Context) error {
	wake, cancel := p.members.Subscribe()
	defer cancel()
	return voters.New(voters.Config{
		Self: p.id.Name(), Raft: p.store.Raft(), Log: p.log.With("room", "cluster"),
		Records: func() (all []voters.Record, err error) {
			records, err := p.registry.Peers()
			for _, r := range records {
				all = append(all, voters.Record{Name: r.Name, Leaving: r.Removing})
			}
			return all, err
		},
		Forget: p.registry.Forget,
		Members: func() map[string]voters.Member {
			all := map[string]voters.Member{}
			for _, m := range p.members.Snapshot() {
				all[m.Name] = voters.Member{Alive: m.Self || m.State.Up(), Since: m.Since, Index: m.Index,
					Hidden: m.Hidden, Unmet: p.unmet(m) != nil}
			}
			return all
		},
	}).Run(ctx, wake)
}

// membership shows the controllers who belongs to the cluster and who lives.
type membership struct{ *peer }

// Snapshot has the peers with a record; gossip alone makes nobody a member.
func (m membership) Snapshot() map[string]controller.Member {
	records, err := m.registry.Peers()
	if err != nil {
		m.log.Error("peer records are not readable", "err", err)
		return nil
	}
	all := map[string]controller.Member{}
	var hidden []string
	reached := 0 // peers that live, with addresses that lead there
	for _, r := range records {
		member := controller.Member{Witness: r.Witness}
		seen, ok := m.members.Member(r.Name)
		if ok {
			switch {
			case seen.Self || seen.State.Up():
				member.Liveness = controller.Alive
			case seen.State != cluster.StateUnknown:
				member.Liveness = controller.Dead
			}
			if seen.Address.IsValid() {
				r.Address, r.Port = seen.Address, seen.Port
			}
		}
		if r.Name == m.id.Name() {
			member.Liveness = controller.Alive
		}
		for _, a := range machineAddresses(r, m.id.Settings()) {
			member.Addresses = append(member.Addresses, netip.AddrPortFrom(a, r.Port))
		}
		if seen.Hidden {
			hidden = append(hidden, r.Name)
		} else if member.Liveness == controller.Alive {
			reached++
		}
		all[r.Name] = member
	}
	if reached == 0 {
		return all // better addresses that lead somewhere for some than none
	}
	for _, name := range hidden { // pods elsewhere do not get there
		member := all[name]
		member.Addresses = nil
		all[name] = member
	}
	return all
}

// Subscribe wakes on changes of gossip; a new record comes with gossip of its peer.
func (m membership) Subscribe() (<-chan struct{}, func()) { return m.members.Subscribe() }
