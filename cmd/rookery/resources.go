package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/rundigitalplatform/rookery/node"
	"github.com/rundigitalplatform/rookery/node/devices"
	"github.com/rundigitalplatform/rookery/node/eviction"
)

// resourcesConfig says what of this machine is for pods, named as kubelet's flags where it
// has such.
type resourcesConfig struct {
	MaxPods     int64
	Reserved    map[string]string
	Hard        map[string]string
	Soft        map[string]string
	SoftGrace   map[string]string
	Reclaim     map[string]string
	Transition  time.Duration
	MaxPodGrace time.Duration
	Devices     []string // RESOURCE=PATH, as many as there are
	Extended    map[string]string
}

func (c *resourcesConfig) flags(f *pflag.FlagSet) {
	f.Int64Var(&c.MaxPods, "max-pods", 110, "pods that this peer runs at most")
	f.StringToStringVar(&c.Reserved, "system-reserved", nil, "cpu, memory and ephemeral-storage that are not for pods (default cpu=100m,memory=100Mi)")
	f.StringToStringVar(&c.Hard, "eviction-hard", nil, "what has to be left or pods are evicted at once, SIGNAL=QUANTITY or SIGNAL=PERCENT%; 0% turns one off (default memory.available=100Mi,nodefs.available=10%,nodefs.inodesFree=5%,imagefs.available=15%,imagefs.inodesFree=5%)")
	f.StringToStringVar(&c.Soft, "eviction-soft", nil, "what has to be left or pods are evicted after a while, as --eviction-hard")
	f.StringToStringVar(&c.SoftGrace, "eviction-soft-grace-period", nil, "the while for each signal of --eviction-soft, SIGNAL=TIME")
	f.StringToStringVar(&c.Reclaim, "eviction-minimum-reclaim", nil, "how much beyond a threshold has to be won once pods were evicted for it")
	f.DurationVar(&c.Transition, "eviction-pressure-transition-period", eviction.DefaultTransition, "how long a Node says that it is under pressure when it is not any more")
	f.DurationVar(&c.MaxPodGrace, "eviction-max-pod-grace-period", 0, "the most of a pod's own grace that it gets when --eviction-soft evicts it")
	f.StringSliceVar(&c.Devices, "devices", nil, "devices that containers may ask for, one container each, RESOURCE=PATH")
	f.StringToStringVar(&c.Extended, "extended-resources", nil, "other things that containers may ask for, RESOURCE=NUMBER")
}

// load is what the agent is told.
func (c *resourcesConfig) load() (node.Resources, error) {
	out := node.Resources{
		Eviction: eviction.Settings{Hard: c.Hard, Soft: c.Soft, SoftGrace: c.SoftGrace, Reclaim: c.Reclaim, Transition: c.Transition, MaxPodGrace: c.MaxPodGrace},
		Devices:  map[v1.ResourceName][]string{}, Extended: map[v1.ResourceName]int64{},
	}
	if c.MaxPods < 1 {
		return out, fmt.Errorf("--max-pods %d: a peer that shall run no pods is drained", c.MaxPods)
	}
	if c.Transition < 0 || c.MaxPodGrace < 0 {
		return out, fmt.Errorf("--eviction-pressure-transition-period and --eviction-max-pod-grace-period may not be negative")
	}
	if _, err := out.Eviction.Thresholds(); err != nil {
		return out, fmt.Errorf("--%w", err)
	}
	if len(c.Reserved) > 0 {
		out.Reserved = node.DefaultReserved()
	}
	for _, name := range slices.Sorted(maps.Keys(c.Reserved)) {
		switch v1.ResourceName(name) {
		case v1.ResourceCPU, v1.ResourceMemory, v1.ResourceEphemeralStorage:
		default:
			return out, fmt.Errorf("--system-reserved %s: there are cpu, memory and ephemeral-storage", name)
		}
		q, err := resource.ParseQuantity(c.Reserved[name])
		if err != nil || q.Sign() < 0 {
			return out, fmt.Errorf("--system-reserved %s: %q is not a quantity such as 100m or 100Mi", name, c.Reserved[name])
		}
		out.Reserved[v1.ResourceName(name)] = q
	}
	for _, device := range c.Devices {
		name, path, found := strings.Cut(device, "=")
		if !found {
			return out, fmt.Errorf("--devices %q is not RESOURCE=PATH, such as example.com/serial=/dev/ttyUSB0", device)
		}
		out.Devices[v1.ResourceName(name)] = append(out.Devices[v1.ResourceName(name)], path)
	}
	if _, err := devices.New(out.Devices); err != nil {
		return out, fmt.Errorf("--%w", err)
	}
	for _, name := range slices.Sorted(maps.Keys(c.Extended)) {
		if err := devices.Check(v1.ResourceName(name)); err != nil {
			return out, fmt.Errorf("--extended-resources: %w", err)
		}
		if len(out.Devices[v1.ResourceName(name)]) > 0 {
			return out, fmt.Errorf("--extended-resources %s: these are devices already", name)
		}
		q, err := resource.ParseQuantity(c.Extended[name])
		if n, whole := q.AsInt64(); err != nil || !whole || n < 0 {
			return out, fmt.Errorf("--extended-resources %s: %q is not a number", name, c.Extended[name])
		}
		out.Extended[v1.ResourceName(name)] = q.Value()
	}
	return out, nil
}
