package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"

	"github.com/rundigitalplatform/rookery/node/devices"
	"github.com/rundigitalplatform/rookery/node/eviction"
	"github.com/rundigitalplatform/rookery/node/images"
	"github.com/rundigitalplatform/rookery/node/spec"
	"github.com/rundigitalplatform/rookery/node/usage"
	"github.com/rundigitalplatform/rookery/runtime"
)

// Network gives a pod its addresses. Package network implements it.
type Network interface {
	// Attach wires the network namespace of pid, which is the pod's sandbox, and returns the
	// pod's addresses, one of each IP family of the cluster, its first family's first. Those
	// of ports that have a HostPort are published on this machine from then on; one that is
	// taken is an error, in the user's words. It is idempotent: for a pod that is attached it
	// returns the same addresses, and repairs what is missing.
	Attach(ctx context.Context, uid string, pid int, ports []v1.ContainerPort) ([]netip.Addr, error)
	// Detach frees the pod's addresses and ports. Idempotent.
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
	// Storage is mended before the first pod is started; nil: nothing can break there.
	Storage Storage
	// Network wires pods that are not in the host's network.
	Network Network

	// ClusterDNS is the resolver of pods with dnsPolicy ClusterFirst, in the cluster's first IP
	// family: under its other address the same one answers. Invalid: they use the host's.
	ClusterDNS netip.Addr
	// ClusterDomain, by default cluster.local.
	ClusterDomain string
	// NodeAddresses are shown in the Node; those of type InternalIP, one of each IP family at
	// most, are the pods' host addresses. It is asked often, for they may change, and must
	// not block. nil: none.
	NodeAddresses func() []v1.NodeAddress
	// PodCIDRs are this peer's parts of the pod network, one of each IP family.
	PodCIDRs []netip.Prefix
	// Labels are put on the Node beside the standard ones.
	Labels map[string]string
	// Version is reported as the kubelet's.
	Version string
	// Port is where the peer answers, by default 6443.
	Port int32
	// MaxPods, by default 110 as in kubelet.
	MaxPods int64
	// Images says how many are pulled at once and when their space is freed.
	Images images.Policy
	// Host is what this machine can do for the security of pods.
	Host spec.Host
	// Resync is how often everything is compared although no event came, by default 60 s.
	Resync time.Duration
	// Resources are what pods may use of the machine.
	Resources Resources
	// Logger, by default slog.Default().
	Logger *slog.Logger
}

// Resources say what of the machine is for pods.
type Resources struct {
	// Reserved is not for pods: of CPU, memory and ephemeral-storage; nil: DefaultReserved.
	Reserved v1.ResourceList
	// Eviction says when pods have to go because the machine runs short; zero: as kubelet does.
	Eviction eviction.Settings
	// Devices are given to one container each, by the resource that they are asked for by.
	// See devices.New.
	Devices map[v1.ResourceName][]string
	// Extended are other resources that only count, such as licences.
	Extended map[v1.ResourceName]int64
	// Machine is observed for eviction; nil: this one.
	Machine Machine
}

// DefaultReserved is little, for boards of 1 GB: with kubelet's 100 MiB for eviction 200 MiB
// are left to the system and Rookery.
func DefaultReserved() v1.ResourceList {
	return v1.ResourceList{v1.ResourceCPU: resource.MustParse("100m"), v1.ResourceMemory: resource.MustParse("100Mi")}
}

func (r Resources) withDefaults() Resources {
	if r.Reserved == nil {
		r.Reserved = DefaultReserved()
	}
	if r.Eviction.Transition == 0 {
		r.Eviction.Transition = eviction.DefaultTransition
	}
	if r.Machine == nil {
		r.Machine = eviction.Machine{Proc: "/proc", Memory: func() (int64, int64, error) {
			c, err := usage.Machine("/proc")
			return c.Memory, meminfo("MemTotal"), err
		}}
	}
	return r
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
	if c.NodeAddresses == nil {
		c.NodeAddresses = func() []v1.NodeAddress { return nil }
	}
	if c.ClusterDomain == "" {
		c.ClusterDomain = "cluster.local"
	}
	if c.Port == 0 {
		c.Port = 6443
	}
	c.Resources = c.Resources.withDefaults()
	for name := range c.Resources.Extended {
		if err := devices.Check(name); err != nil {
			errs = append(errs, fmt.Errorf("node config: Extended: %w", err))
		}
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
	for _, a := range c.NodeAddresses() {
		if a.Type == v1.NodeInternalIP {
			out = append(out, a.Address)
		}
	}
	return out
}
