package usage

import (
	"context"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	stats "k8s.io/kubelet/pkg/apis/stats/v1alpha1"

	"github.com/rundigitalplatform/rookery/runtime"
)

// Files is what the machine's file systems hold, and its process ids.
type Files struct {
	At           time.Time
	Node, Images FS                  // where volumes, and where images and containers are; zero: not known
	Pods         map[string]PodFiles // by UID; one that is not there could not be measured
	// Processes and threads there are and may be at most; 0: not known.
	Processes, MaxProcesses int64
}

// FS is a file system.
type FS struct{ Available, Capacity, InodesFree, Inodes int64 }

// PodFiles are those of a pod.
type PodFiles struct {
	Containers map[string]ContainerFiles // by name
	Volumes    map[string]runtime.Space  // its directories on disk, by name
	Other      runtime.Space             // all else that is counted as its own
}

// ContainerFiles are what a container has written.
type ContainerFiles struct{ Layer, Logs runtime.Space }

const (
	// measured is how long files that were measured are good for those who ask next: looking
	// at each of them is not cheap.
	measured = 30 * time.Second
	// measuredShare of the time is what measuring takes at most, where that is longer: a twentieth.
	measuredShare = 20
)

// filesNow are the files, not older than they have to be; nil without an error: nobody
// measures them.
func (s *Sampler) filesNow(ctx context.Context) (*Files, error) {
	if s.measure == nil {
		return nil, nil
	}
	select {
	case s.turn <- struct{}{}:
		defer func() { <-s.turn }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if s.files != nil && time.Now().Before(s.good) {
		return s.files, nil
	}
	began := time.Now()
	files, err := s.measure(ctx)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	s.files, s.good = files, now.Add(max(measured, measuredShare*now.Sub(began)))
	return files, nil
}

// add completes a summary by files and process ids.
func (f *Files) add(to *stats.Summary) {
	at := metav1.NewTime(f.At)
	to.Node.Fs = f.Node.stats(at, nil)
	if images := f.Images.stats(at, nil); images != nil {
		to.Node.Runtime = &stats.RuntimeStats{ImageFs: images, ContainerFs: images}
	}
	if f.MaxProcesses > 0 {
		to.Node.Rlimit = &stats.RlimitStats{Time: at, MaxPID: &f.MaxProcesses, NumOfRunningProcesses: &f.Processes}
	}
	for i := range to.Pods {
		pod := &to.Pods[i]
		files, ok := f.Pods[pod.PodRef.UID]
		if !ok {
			continue
		}
		all := files.Other
		sum := func(s runtime.Space) *runtime.Space {
			all = all.Add(s)
			return &s
		}
		for k := range pod.Containers {
			c := files.Containers[pod.Containers[k].Name]
			pod.Containers[k].Rootfs = f.Images.stats(at, sum(c.Layer))
			pod.Containers[k].Logs = f.Images.stats(at, sum(c.Logs))
		}
		for _, name := range sorted(files.Volumes) {
			v := stats.VolumeStats{Name: name}
			if used := f.Node.stats(at, sum(files.Volumes[name])); used != nil {
				v.FsStats = *used
			}
			pod.VolumeStats = append(pod.VolumeStats, v)
		}
		pod.EphemeralStorage = f.Node.stats(at, &all)
	}
}

// stats of a file system, of which something uses that much; nil: count all that is used.
func (f FS) stats(at metav1.Time, used *runtime.Space) *stats.FsStats {
	if f.Capacity == 0 && used == nil {
		return nil
	}
	unsigned := func(n int64) *uint64 { return new(uint64(max(n, 0))) }
	out := &stats.FsStats{Time: at}
	if f.Capacity > 0 {
		out.AvailableBytes, out.CapacityBytes = unsigned(f.Available), unsigned(f.Capacity)
		out.UsedBytes = unsigned(f.Capacity - f.Available)
	}
	if f.Inodes > 0 {
		out.InodesFree, out.Inodes, out.InodesUsed = unsigned(f.InodesFree), unsigned(f.Inodes), unsigned(f.Inodes-f.InodesFree)
	}
	if used != nil {
		out.UsedBytes, out.InodesUsed = unsigned(used.Bytes), unsigned(used.Inodes)
	}
	return out
}
