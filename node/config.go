package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"

	"github.com/rundigitalplatform/rookery/runtime"
)

// Network gives a pod its addresses. Package network implements it.
type Network interface {
	// Attach wires the network namespace of pid, which is the pod's sandbox, and
	// returns the pod's addresses. It is idempotent: for a pod that is attached it
	// returns the same addresses, and repairs what is missing.
	Attach(ctx context.Context, uid string, pid int) ([]netip.Addr, error)
	// Detach frees the pod's addresses. Idempotent.
	Detach(ctx context.Context, uid string) error
}

// Config is what an agent needs. All fields without a default are required.
type Config struct {
	// Name of this peer, and of its Node object.
	Name string
	// Dir is where pods' files are: DIR/UID.
	Dir string
	// Client writes Node, pods' status and events, reads ConfigMaps and Secrets, and asks for tokens.
	Client kubernetes.Interface
	// Informers is the process's shared factory, fed by the local peer. New asks it for Pods,
	// Services and Nodes; the caller starts it after New and before or after Run.
	Informers informers.SharedInformerFactory
	// Runtime runs the containers.
	Runtime runtime.Runtime
	// Network wires pods that are not in the host's network.
	Network Network

	// ClusterDNS is the resolver of pods with dnsPolicy ClusterFirst; invalid: they use the host's.
	ClusterDNS netip.Addr
	// ClusterDomain, by default cluster.local.
	ClusterDomain string
	// NodeAddresses are shown in the Node; those of type InternalIP are the pods' host addresses.
	NodeAddresses []v1.NodeAddress
	// PodCIDRs are this peer's parts of the pod network.
	PodCIDRs []string
	// Labels are put on the Node beside the standard ones.
	Labels map[string]string
	// Version is reported as the kubelet's.
	Version string
	// Port is where the peer answers, by default 6443.
	Port int32
	// MaxPods, by default 110 as in kubelet.
	MaxPods int64
	// Resync is how often everything is compared although no event came, by default 60 s.
	Resync time.Duration
	// Logger, by default slog.Default().
	Logger *slog.Logger
}

func (c Config) withDefaults() (Config, error) {
	var errs []error
	need := func(ok bool, field string) {
		if !ok {
			errs = append(errs, fmt.Errorf("node config: %s is missing", field))
		}
	}
	need(c.Name != "", "Name")
	need(c.Dir != "", "Dir")
	need(c.Client != nil, "Client")
	need(c.Informers != nil, "Informers")
	need(c.Runtime != nil, "Runtime")
	need(c.Network != nil, "Network")
	if c.ClusterDomain == "" {
		c.ClusterDomain = "cluster.local"
	}
	if c.Port == 0 {
		c.Port = 6443
	}
	if c.MaxPods == 0 {
		c.MaxPods = 110
	}
	if c.Resync == 0 {
		c.Resync = time.Minute
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	return c, errors.Join(errs...)
}

func (c Config) hostIPs() []string {
	var out []string
	for _, a := range c.NodeAddresses {
		if a.Type == v1.NodeInternalIP {
			out = append(out, a.Address)
		}
	}
	return out
}
