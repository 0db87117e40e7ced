package apiserver

import (
	"context"
	"errors"
	"fmt"
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
	ports, err := s.nodePorts.claims.all()
	if err != nil {
		return nil, err
	}
	addresses, err := s.takenAddresses(ctx)
	if err != nil {
		return nil, err
	}
	services, err := s.client.CoreV1().Services(metav1.NamespaceAll).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("list services: %w", err)
	}
	orphans := map[string]int64{}
	for name, revision := range ports {
		orphans[s.nodePorts.claims.prefix+name] = revision
	}
	for i := range services.Items {
		svc := &services.Items[i]
		for _, port := range portsOf(svc) {
			delete(orphans, s.nodePorts.claims.prefix+port)
			if _, ok := ports[port]; !ok {
				if err := s.again(svc, port, s.nodePorts.claims.take(port)); err != nil {
					return nil, err
				}
			}
		}
	}
	if err := s.repairAddresses(addresses, services.Items, orphans); err != nil {
		return nil, err
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

// again says what was claimed a second time, unless that failed.
func (s *Server) again(svc *corev1.Service, what string, err error) error {
	switch {
	case errors.Is(err, errTaken): // a moment ago, by whoever writes the Service
		return nil
	case err != nil:
		return err
	}
	s.cfg.Logger.Info("claimed again what a service holds", "claim", what, "service", svc.Namespace+"/"+svc.Name)
	return nil
}

// portsOf are the node ports that a Service must hold.
func portsOf(svc *corev1.Service) []string {
	var out []string
	for _, p := range svc.Spec.Ports {
		if p.NodePort != 0 {
			out = append(out, strconv.Itoa(int(p.NodePort)))
		}
	}
	if p := svc.Spec.HealthCheckNodePort; p != 0 {
		out = append(out, strconv.Itoa(int(p)))
	}
	return out
}
