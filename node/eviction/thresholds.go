// Package eviction decides when a machine is so short of memory, disk or process ids
// that pods have to go, which of them, and what they are told: kubelet's rules, as pure
// functions of what was observed. It also reads the machine. Package node measures pods,
// carries out what is decided, and says so in the Node.
package eviction

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// Signal is something of which a machine can run out, by kubelet's name.
type Signal string

// The signals. nodefs is where volumes are, imagefs where images, containers and their
// logs are; they may be the same.
const (
	MemoryAvailable   Signal = "memory.available"
	NodeFSAvailable   Signal = "nodefs.available"
	NodeFSInodesFree  Signal = "nodefs.inodesFree"
	ImageFSAvailable  Signal = "imagefs.available"
	ImageFSInodesFree Signal = "imagefs.inodesFree"
	PIDAvailable      Signal = "pid.available"
)

// What events and messages call what is short, beside the names of resources.
const (
	inodes v1.ResourceName = "inodes"
	pids   v1.ResourceName = "pids"
)

type meaning struct {
	condition v1.NodeConditionType
	resource  v1.ResourceName
}

// meaningOf a signal; false: there is none of that name.
func meaningOf(s Signal) (meaning, bool) {
	switch s {
	case MemoryAvailable:
		return meaning{v1.NodeMemoryPressure, v1.ResourceMemory}, true
	case NodeFSAvailable, ImageFSAvailable:
		return meaning{v1.NodeDiskPressure, v1.ResourceEphemeralStorage}, true
	case NodeFSInodesFree, ImageFSInodesFree:
		return meaning{v1.NodeDiskPressure, inodes}, true
	case PIDAvailable:
		return meaning{v1.NodePIDPressure, pids}, true
	}
	return meaning{}, false
}

// Resource is what a threshold's signal is short of.
func (t Threshold) Resource() v1.ResourceName {
	m, _ := meaningOf(t.Signal)
	return m.resource
}

// OnDisk says that removing images may help.
func (t Threshold) OnDisk() bool {
	m, _ := meaningOf(t.Signal)
	return m.condition == v1.NodeDiskPressure
}

// Value is an amount, or if that is 0 a share of the capacity between 0 and 1.
type Value struct {
	Amount int64
	Share  float64
}

// Of the capacity.
func (v Value) Of(capacity int64) int64 {
	if v.Amount != 0 {
		return v.Amount
	}
	return int64(float64(capacity) * v.Share)
}

// Threshold is met while less than Value is available.
type Threshold struct {
	Signal Signal
	Value  Value
	// Grace is how long it has to be met before pods are evicted; 0: a hard threshold, at
	// once, and the pods have a second to end.
	Grace time.Duration
	// Reclaim is how much beyond Value has to be available for it not to be met any more.
	Reclaim Value
}

// Settings are what an operator says, by the names of kubelet's flags. Amounts are
// quantities (100Mi) or percentages (10%).
type Settings struct {
	// Hard are laid over Defaults; "0%" takes one of them out.
	Hard map[string]string
	// Soft need a period each in SoftGrace.
	Soft map[string]string
	// SoftGrace has durations such as 90s.
	SoftGrace map[string]string
	// Reclaim is the least that has to be won once a threshold was met.
	Reclaim map[string]string
	// Transition is how long a condition of the Node stays when nothing is short any more;
	// 0: DefaultTransition.
	Transition time.Duration
	// MaxPodGrace bounds a pod's own grace where a soft threshold evicts it; 0: as for hard ones.
	MaxPodGrace time.Duration
}

// DefaultTransition is kubelet's: so that a pod that comes back where another was evicted
// does not make the Node flap.
const DefaultTransition = 5 * time.Minute

// Defaults are kubelet's hard thresholds.
func Defaults() map[string]string {
	return map[string]string{
		string(MemoryAvailable): "100Mi", string(NodeFSAvailable): "10%", string(NodeFSInodesFree): "5%",
		string(ImageFSAvailable): "15%", string(ImageFSInodesFree): "5%",
	}
}

// Thresholds are the settings', in a fixed order. An error names the setting.
func (s Settings) Thresholds() ([]Threshold, error) {
	hard := Defaults()
	maps.Copy(hard, s.Hard)
	out, err := parse("eviction-hard", hard)
	if err != nil {
		return nil, err
	}
	soft, err := parse("eviction-soft", s.Soft)
	if err != nil {
		return nil, err
	}
	for i := range soft {
		text, ok := s.SoftGrace[string(soft[i].Signal)]
		if !ok {
			return nil, fmt.Errorf("eviction-soft %s needs a period in eviction-soft-grace-period, such as %s: 90s", soft[i].Signal, soft[i].Signal)
		}
		if soft[i].Grace, err = time.ParseDuration(text); err != nil || soft[i].Grace <= 0 {
			return nil, fmt.Errorf("eviction-soft-grace-period %s: %q is not a time such as 90s", soft[i].Signal, text)
		}
	}
	for name := range s.SoftGrace {
		if _, ok := s.Soft[name]; !ok {
			return nil, fmt.Errorf("eviction-soft-grace-period %s: there is no such signal in eviction-soft", name)
		}
	}
	out = append(out, soft...)
	reclaim, err := parse("eviction-minimum-reclaim", s.Reclaim)
	if err != nil {
		return nil, err
	}
	for _, r := range reclaim {
		for i := range out {
			if out[i].Signal == r.Signal {
				out[i].Reclaim = r.Value
			}
		}
	}
	return out, nil
}

func parse(setting string, from map[string]string) ([]Threshold, error) {
	var out []Threshold
	for _, name := range slices.Sorted(maps.Keys(from)) {
		if _, ok := meaningOf(Signal(name)); !ok {
			return nil, fmt.Errorf("%s: %q is not a signal; there are %s, %s, %s, %s, %s and %s", setting, name,
				MemoryAvailable, NodeFSAvailable, NodeFSInodesFree, ImageFSAvailable, ImageFSInodesFree, PIDAvailable)
		}
		v, err := parseValue(from[name])
		if err != nil {
			return nil, fmt.Errorf("%s %s: %w", setting, name, err)
		}
		if v != (Value{}) {
			out = append(out, Threshold{Signal: Signal(name), Value: v})
		}
	}
	return out, nil
}

// parseValue returns zero for what is never met, or always: 0% and 100%, as kubelet does.
func parseValue(text string) (Value, error) {
	if number, ok := strings.CutSuffix(text, "%"); ok {
		percent, err := strconv.ParseFloat(number, 64)
		if err != nil || percent < 0 || percent > 100 {
			return Value{}, fmt.Errorf("%q is not a percentage between 0%% and 100%%", text)
		}
		if percent == 0 || percent == 100 {
			return Value{}, nil
		}
		return Value{Share: percent / 100}, nil
	}
	q, err := resource.ParseQuantity(text)
	if err != nil || q.Value() <= 0 {
		return Value{}, fmt.Errorf("%q is neither a quantity such as 100Mi nor a percentage such as 10%%", text)
	}
	return Value{Amount: q.Value()}, nil
}
