package allocation

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/rundigitalplatform/rookery/raftstore"
)

// repairEvery is how often claims are compared with Services. A claim that was
// an orphan twice in a row is released, so a Service has that long between its
// claim and its write, which takes seconds at most.
const repairEvery = 3 * time.Minute

// Repair releases addresses and node ports that no Service holds, and claims those that
// a Service holds without a claim. It writes only when something is wrong. Its methods are
// not to be called concurrently.
type Repair struct {
	Client    kubernetes.Interface
	Store     raftstore.Store
	Addresses Families
	NodePorts *NodePorts
	Logger    *slog.Logger

	orphans map[string]int64 // of the last comparison, by key and revision
}

// Run repairs until ctx ends. The leader runs it under the context of its term.
func (r *Repair) Run(ctx context.Context) {
	tick := time.NewTicker(repairEvery)
	defer tick.Stop()
	for {
		if err := r.Once(ctx); err != nil && ctx.Err() == nil {
			r.Logger.Warn("repair service allocations", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// Once compares and repairs. An orphan is released when two comparisons in a row have seen it.
func (r *Repair) Once(ctx context.Context) error {
	// Claims first: a Service written between the two reads has its claim already.
	ports, err := r.NodePorts.claims.all()
	if err != nil {
		return err
	}
	addresses, err := r.takenAddresses(ctx)
	if err != nil {
		return err
	}
	services, err := r.Client.CoreV1().Services(metav1.NamespaceAll).List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("list services: %w", err)
	}
	orphans := map[string]int64{}
	for name, revision := range ports {
		orphans[r.NodePorts.claims.prefix+name] = revision
	}
	for i := range services.Items {
		svc := &services.Items[i]
		for _, port := range portsOf(svc) {
			delete(orphans, r.NodePorts.claims.prefix+port)
			if _, ok := ports[port]; !ok {
				if err := r.again(svc, port, r.NodePorts.claims.take(port)); err != nil {
					return err
				}
			}
		}
	}
	if err := r.repairAddresses(addresses, services.Items, orphans); err != nil {
		return err
	}
	for key, revision := range orphans {
		if r.orphans[key] != revision {
			continue
		}
		if _, err := r.Store.Txn(ctx, raftstore.Txn{{Key: key, If: revision, Kind: raftstore.Delete}}); err != nil {
			return fmt.Errorf("release orphan %s: %w", key, err)
		}
		r.Logger.Info("released what no service holds", "key", key)
	}
	r.orphans = orphans
	return nil
}

// again says what was claimed a second time, unless that failed.
func (r *Repair) again(svc *corev1.Service, what string, err error) error {
	switch {
	case errors.Is(err, errTaken): // a moment ago, by whoever writes the Service
		return nil
	case err != nil:
		return err
	}
	r.Logger.Info("claimed again what a service holds", "claim", what, "service", svc.Namespace+"/"+svc.Name)
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
