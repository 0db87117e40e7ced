package apiserver

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/rundigitalplatform/rookery/raftstore"
)

// repairEvery is how often claims are compared with Services. A claim that was
// an orphan twice in a row is released, so a Service has that long between its
// claim and its write, which takes seconds at most.
const repairEvery = 3 * time.Minute

// RepairAllocations releases addresses and node ports that no Service holds and
// claims those that a Service holds without a claim, until ctx ends. The leader
// runs it under the context of its term. It writes only when something is wrong.
func (s *Server) RepairAllocations(ctx context.Context) error {
	orphans := map[string]int64{}
	tick := time.NewTicker(repairEvery)
	defer tick.Stop()
	for {
		next, err := s.repairOnce(ctx, orphans)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			s.cfg.Logger.Warn("repair service allocations", "error", err)
		default:
			orphans = next
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// repairOnce does one comparison and returns the orphans it saw, by key and revision.
func (s *Server) repairOnce(ctx context.Context, seen map[string]int64) (map[string]int64, error) {
	// Claims first: a Service written between the two reads has its claim already.
	held := map[string]int64{}
	for _, c := range []claims{s.addresses.claims, s.nodePorts.claims} {
		names, err := c.all()
		if err != nil {
			return nil, err
		}
		for name, revision := range names {
			held[c.prefix+name] = revision
		}
	}
	services, err := s.client.CoreV1().Services(metav1.NamespaceAll).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("list services: %w", err)
	}
	orphans := maps.Clone(held)
	for i := range services.Items {
		for key, take := range s.claimsOf(&services.Items[i]) {
			delete(orphans, key)
			if _, ok := held[key]; ok {
				continue
			}
			if err := take(); err != nil && !errors.Is(err, errTaken) {
				return nil, err
			}
			s.cfg.Logger.Info("claimed again what a service holds", "key", key, "service", services.Items[i].Namespace+"/"+services.Items[i].Name)
		}
	}
	for key, revision := range orphans {
		if seen[key] != revision {
			continue
		}
		if _, err := s.cfg.Store.Txn(ctx, raftstore.Txn{{Key: key, If: revision, Kind: raftstore.Delete}}); err != nil {
			return nil, fmt.Errorf("release orphan %s: %w", key, err)
		}
		s.cfg.Logger.Info("released what no service holds", "key", key)
	}
	return orphans, nil
}

// claimsOf returns the keys that a Service must hold, each with how to take it.
func (s *Server) claimsOf(svc *corev1.Service) map[string]func() error {
	out := map[string]func() error{}
	add := func(c claims, name string) { out[c.prefix+name] = func() error { return c.take(name) } }
	for _, ip := range svc.Spec.ClusterIPs {
		if addr, err := s.addresses.usable(net.ParseIP(ip)); err == nil {
			add(s.addresses.claims, addr.String())
		}
	}
	for _, p := range svc.Spec.Ports {
		if p.NodePort != 0 {
			add(s.nodePorts.claims, strconv.Itoa(int(p.NodePort)))
		}
	}
	if p := svc.Spec.HealthCheckNodePort; p != 0 {
		add(s.nodePorts.claims, strconv.Itoa(int(p)))
	}
	return out
}
