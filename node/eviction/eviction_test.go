package eviction

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"github.com/rundigitalplatform/rookery/runtime"
)

func podOf(t *testing.T, name, spec string) *v1.Pod {
	t.Helper()
	pod := &v1.Pod{}
	pod.Name = name
	if err := yaml.UnmarshalStrict([]byte(spec), &pod.Spec); err != nil {
		t.Fatal(err)
	}
	return pod
}

func TestThresholds(t *testing.T) {
	text := func(s Settings) string {
		list, err := s.Thresholds()
		if err != nil {
			return "error: " + err.Error()
		}
		var out []string
		for _, t := range list {
			one := fmt.Sprintf("%s<%d/%g", t.Signal, t.Value.Amount, t.Value.Share)
			if t.Grace != 0 {
				one += " after " + t.Grace.String()
			}
			if t.Reclaim != (Value{}) {
				one += fmt.Sprintf(" wins %d/%g", t.Reclaim.Amount, t.Reclaim.Share)
			}
			out = append(out, one)
		}
		return strings.Join(out, ", ")
	}
	for _, tt := range []struct {
		name string
		s    Settings
		want string
	}{
		{"kubelet's", Settings{}, "imagefs.available<0/0.15, imagefs.inodesFree<0/0.05, memory.available<104857600/0, nodefs.available<0/0.1, nodefs.inodesFree<0/0.05"},
		{"laid over them", Settings{Hard: map[string]string{"memory.available": "5%", "nodefs.available": "0%", "nodefs.inodesFree": "100%", "imagefs.available": "0%", "imagefs.inodesFree": "0%", "pid.available": "1000"}},
			"memory.available<0/0.05, pid.available<1000/0"},
		{"soft", Settings{Hard: map[string]string{"nodefs.available": "0%", "nodefs.inodesFree": "0%", "imagefs.available": "0%", "imagefs.inodesFree": "0%"}, Soft: map[string]string{"memory.available": "300Mi"}, SoftGrace: map[string]string{"memory.available": "90s"}, Reclaim: map[string]string{"memory.available": "50Mi"}},
			"memory.available<104857600/0 wins 52428800/0, memory.available<314572800/0 after 1m30s wins 52428800/0"},
		{"soft without a period", Settings{Soft: map[string]string{"memory.available": "300Mi"}}, "error: eviction-soft memory.available needs a period in eviction-soft-grace-period, such as memory.available: 90s"},
		{"a period of nothing", Settings{SoftGrace: map[string]string{"memory.available": "1m"}}, "error: eviction-soft-grace-period memory.available: there is no such signal in eviction-soft"},
		{"a wrong period", Settings{Soft: map[string]string{"memory.available": "300Mi"}, SoftGrace: map[string]string{"memory.available": "90"}}, `error: eviction-soft-grace-period memory.available: "90" is not a time such as 90s`},
		{"an unknown signal", Settings{Hard: map[string]string{"memory": "1Gi"}}, `error: eviction-hard: "memory" is not a signal; there are memory.available, nodefs.available, nodefs.inodesFree, imagefs.available, imagefs.inodesFree and pid.available`},
		{"too much", Settings{Hard: map[string]string{"memory.available": "101%"}}, `error: eviction-hard memory.available: "101%" is not a percentage between 0% and 100%`},
		{"nothing", Settings{Reclaim: map[string]string{"memory.available": "-1"}}, `error: eviction-minimum-reclaim memory.available: "-1" is neither a quantity such as 100Mi nor a percentage such as 10%`},
	} {
		if have := text(tt.s); have != tt.want {
			t.Errorf("%s:\nhave %s\nwant %s", tt.name, have, tt.want)
		}
	}
}

// A machine over time: what is free of its 1000 bytes of memory and 1000 of disk, and what
// follows from that.
func TestObserve(t *testing.T) {
	thresholds := []Threshold{
		{Signal: NodeFSAvailable, Value: Value{Share: 0.1}},
		{Signal: MemoryAvailable, Value: Value{Amount: 100}, Reclaim: Value{Amount: 50}},
		{Signal: MemoryAvailable, Value: Value{Amount: 300}, Grace: time.Minute},
	}
	var s State
	now := time.Unix(1000, 0)
	for i, tt := range []struct {
		after        time.Duration
		memory, disk int64
		want         string
	}{
		{0, 500, 500, "[] []"},
		{10 * time.Second, 299, 500, "[MemoryPressure] []"},
		{30 * time.Second, 299, 500, "[MemoryPressure] []"},
		{10 * time.Second, 300, 500, "[MemoryPressure] []"}, // its minute begins anew
		{30 * time.Second, 200, 500, "[MemoryPressure] []"},
		{time.Minute, 200, 500, "[MemoryPressure] [memory.available<300]"},
		{10 * time.Second, 99, 99, "[DiskPressure MemoryPressure] [memory.available<100 memory.available<300 nodefs.available<100]"},
		{10 * time.Second, 149, 100, "[DiskPressure MemoryPressure] [memory.available<100 memory.available<300]"}, // not enough won
		{10 * time.Second, 150, 500, "[DiskPressure MemoryPressure] [memory.available<300]"},
		{10 * time.Second, 900, 500, "[DiskPressure MemoryPressure] []"},
		{4*time.Minute + 29*time.Second, 900, 500, "[DiskPressure MemoryPressure] []"},
		{time.Second, 900, 500, "[MemoryPressure] []"},
		{10 * time.Second, 900, 500, "[MemoryPressure] []"},
		{10 * time.Second, 900, 500, "[] []"},
	} {
		now = now.Add(tt.after)
		v := s.Observe(thresholds, Observations{MemoryAvailable: {tt.memory, 1000}, NodeFSAvailable: {tt.disk, 1000}}, DefaultTransition, now)
		starved := []string{}
		for _, x := range v.Starved {
			starved = append(starved, fmt.Sprintf("%s<%d", x.Signal, x.Value.Of(1000)))
		}
		if have := fmt.Sprint(v.Conditions, starved); have != tt.want {
			t.Errorf("%d: have %s, want %s", i, have, tt.want)
		}
	}
	if v := s.Observe(thresholds, nil, DefaultTransition, now.Add(time.Hour)); len(v.Conditions)+len(v.Starved) != 0 {
		t.Errorf("nothing could be seen: %+v", v)
	}
}

func TestRank(t *testing.T) {
	const mi = 1 << 20
	used := map[string]Usage{
		"below":     {Memory: 90 * mi, Processes: 900},
		"above":     {Memory: 30 * mi, Processes: 10, Layers: runtime.Space{Bytes: 500, Inodes: 3}},
		"far-above": {Memory: 80 * mi, Processes: 20, Volumes: runtime.Space{Bytes: 400, Inodes: 9}},
		"important": {Memory: 800 * mi, Processes: 30, Volumes: runtime.Space{Bytes: 300, Inodes: 1}, Layers: runtime.Space{Bytes: 300, Inodes: 1}},
	}
	specs := map[string]string{
		"below":     "containers: [{name: a, resources: {requests: {memory: 100Mi, ephemeral-storage: 1Mi}}}]",
		"above":     "containers: [{name: a, resources: {requests: {memory: 10Mi}}}]",
		"far-above": "containers: [{name: a}]",
		"important": "{priority: 1000, containers: [{name: a}]}",
		"unknown":   "{priority: 1000, containers: [{name: a}]}",
	}
	for _, tt := range []struct {
		signal  Signal
		oneDisk bool
		want    string
	}{
		{MemoryAvailable, true, "unknown far-above above important below"},
		{PIDAvailable, true, "unknown below far-above above important"},
		{NodeFSAvailable, true, "unknown above far-above important below"},
		{ImageFSInodesFree, true, "unknown far-above above important below"},
		{NodeFSAvailable, false, "unknown far-above important above below"},
		{ImageFSAvailable, false, "unknown above important far-above below"},
	} {
		var pods []*v1.Pod
		for _, name := range []string{"below", "important", "above", "far-above", "unknown"} {
			pods = append(pods, podOf(t, name, specs[name]))
		}
		Rank(Threshold{Signal: tt.signal}, pods, tt.oneDisk, func(p *v1.Pod) (Usage, bool) { u, ok := used[p.Name]; return u, ok })
		var names []string
		for _, p := range pods {
			names = append(names, p.Name)
		}
		have := strings.Join(names, " ")
		if have != tt.want {
			t.Errorf("%s, one disk %v: have %s, want %s", tt.signal, tt.oneDisk, have, tt.want)
		}
	}
}

func TestMessage(t *testing.T) {
	memory, disk := Threshold{Signal: MemoryAvailable, Value: Value{Amount: 100 << 20}}, Threshold{Signal: NodeFSAvailable, Value: Value{Share: 0.1}}
	seen := Observations{MemoryAvailable: {98 << 20, 1 << 30}, NodeFSAvailable: {1 << 20, 100 << 20}, PIDAvailable: {99, 32768}}
	u := &Usage{Memory: 300 << 20, Containers: []ContainerUsage{{"web", 200 << 20, 3 << 20}, {"small", 100 << 20, 1 << 10}, {"debug", 1 << 20, 1 << 20}}}
	pod := podOf(t, "a", "{ephemeralContainers: [{name: debug}], containers: [{name: web, resources: {requests: {memory: 64Mi}}}, {name: small, resources: {requests: {memory: 100Mi, ephemeral-storage: 1Mi}}}]}")
	have, notes := Message(memory, []Threshold{memory}, seen, pod, u)
	want := "The node was low on resource: memory. Threshold quantity: 100Mi, available: 98Mi. Container web was using 200Mi, request is 64Mi, has larger consumption of memory. "
	if have != want || notes["offending_containers"] != "web" || notes["offending_containers_usage"] != "200Mi" || notes["starved_resource"] != "memory" {
		t.Errorf("memory: %s %v", have, notes)
	}
	have, _ = Message(disk, []Threshold{memory, disk}, seen, pod, u)
	if want := "The node was low on resource: ephemeral-storage. Threshold quantity: 10Mi, available: 1Mi. Container web was using 3Mi, request is 0, has larger consumption of ephemeral-storage. "; have != want {
		t.Errorf("disk: %s", have)
	}
	have, _ = Message(Threshold{Signal: PIDAvailable, Value: Value{Amount: 1000}}, []Threshold{{Signal: PIDAvailable, Value: Value{Amount: 1000}}}, seen, pod, u)
	if want := "The node was low on resource: pids. Threshold quantity: 1k, available: 99. "; have != want {
		t.Errorf("process ids: %s", have)
	}
	have, _ = Message(memory, []Threshold{memory}, seen, podOf(t, "b", "{resources: {requests: {memory: 200Mi}}, containers: [{name: x}]}"), &Usage{Memory: 300 << 20})
	if want := "The node was low on resource: memory. Threshold quantity: 100Mi, available: 98Mi. Pod b was using 300Mi, request is 200Mi, has larger consumption of memory. "; have != want {
		t.Errorf("of the pod: %s", have)
	}
	if have, _ := Message(memory, []Threshold{memory}, seen, pod, nil); have != "The node was low on resource: memory. Threshold quantity: 100Mi, available: 98Mi. " {
		t.Errorf("not known: %s", have)
	}
}

func TestExceeded(t *testing.T) {
	const mi = 1 << 20
	for _, tt := range []struct {
		name, spec, want string
		volumes, disk    map[string]int64
		other            int64
		limited          bool
	}{
		{"no limits", "{containers: [{name: a}], volumes: [{name: v, emptyDir: {}}]}", "", map[string]int64{"v": 9 * mi}, map[string]int64{"a": 9 * mi}, 0, false},
		{"in memory", "{containers: [{name: a}], volumes: [{name: v, emptyDir: {medium: Memory, sizeLimit: 1Mi}}]}", "", map[string]int64{"v": 9 * mi}, nil, 0, false},
		{"within", "{containers: [{name: a, resources: {limits: {ephemeral-storage: 10Mi}}}], volumes: [{name: v, emptyDir: {sizeLimit: 5Mi}}]}", "", map[string]int64{"v": 5 * mi}, map[string]int64{"a": 4 * mi}, mi, true},
		{"emptyDir", "{containers: [{name: a}], volumes: [{name: v, emptyDir: {sizeLimit: 5Mi}}]}", `Usage of EmptyDir volume "v" exceeds the limit "5Mi". `, map[string]int64{"v": 5*mi + 1}, nil, 0, true},
		{"all together", "{containers: [{name: a, resources: {limits: {ephemeral-storage: 10Mi}}}], volumes: [{name: v, emptyDir: {}}]}", "Pod ephemeral local storage usage exceeds the total limit of containers 10Mi. ", map[string]int64{"v": 5 * mi}, map[string]int64{"a": 5 * mi}, 1, true},
		{"one container", "{initContainers: [{name: s, restartPolicy: Always, resources: {limits: {ephemeral-storage: 10Mi}}}], containers: [{name: a, resources: {limits: {ephemeral-storage: 10Mi}}}]}", `Container s exceeded its local ephemeral storage limit "10Mi". `, nil, map[string]int64{"s": 11 * mi, "a": mi}, 0, true},
	} {
		pod := podOf(t, "p", tt.spec)
		if have := Exceeded(pod, tt.volumes, tt.disk, tt.other); have != tt.want || Limited(pod) != tt.limited {
			t.Errorf("%s: %q, limited %v", tt.name, have, Limited(pod))
		}
	}
}

func TestRefuses(t *testing.T) {
	memory, disk := []v1.NodeConditionType{v1.NodeMemoryPressure}, []v1.NodeConditionType{v1.NodeDiskPressure}
	for _, tt := range []struct {
		conditions []v1.NodeConditionType
		spec       string
		bestEffort bool
		want       string
	}{
		{nil, "containers: [{name: a}]", true, ""},
		{memory, "containers: [{name: a}]", false, ""},
		{memory, "containers: [{name: a}]", true, "The node had condition: [MemoryPressure]. "},
		{memory, "{containers: [{name: a}], tolerations: [{key: node.kubernetes.io/memory-pressure, operator: Exists, effect: NoSchedule}]}", true, ""},
		{memory, "{containers: [{name: a}], tolerations: [{key: node.kubernetes.io/disk-pressure, operator: Exists}]}", true, "The node had condition: [MemoryPressure]. "},
		{disk, "{containers: [{name: a}], tolerations: [{operator: Exists}]}", false, "The node had condition: [DiskPressure]. "},
		{disk, "{priority: 2000000000, containers: [{name: a}]}", true, ""},
		{append(disk, memory...), "containers: [{name: a}]", false, "The node had condition: [DiskPressure MemoryPressure]. "},
	} {
		if have, refused := Refuses(tt.conditions, podOf(t, "p", tt.spec), tt.bestEffort); have != tt.want || refused != (have != "") {
			t.Errorf("%v %s: %q %v", tt.conditions, tt.spec, have, refused)
		}
	}
}

// The machine as proc(5) shows it, and what is missing of it.
func TestMachine(t *testing.T) {
	dir := t.TempDir()
	write := func(path, content string) {
		t.Helper()
		path = filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("sys/kernel/pid_max", "4194304\n")
	write("sys/kernel/threads-max", "32768\n")
	write("loadavg", "0.20 0.18 0.12 1/768 11206\n")
	m := Machine{Proc: dir, Memory: func() (int64, int64, error) { return 300, 1000, nil }}
	o, err := m.Observe(dir, "")
	if err != nil || o[MemoryAvailable] != (Observation{700, 1000}) || o[PIDAvailable] != (Observation{32000, 32768}) {
		t.Errorf("observed %v, %v", o, err)
	}
	if fs := o[NodeFSAvailable]; fs.Capacity <= 0 || fs.Available <= 0 || fs.Available > fs.Capacity {
		t.Errorf("disk is %+v", fs)
	}
	if _, ok := o[ImageFSAvailable]; ok {
		t.Error("a disk that nobody named was looked at")
	}
	write("loadavg", "rubbish\n")
	m.Memory = func() (int64, int64, error) { return 0, 0, errors.New("no memory") }
	o, err = m.Observe(dir+"/none", dir)
	for _, want := range []string{"no memory", "statfs", "loadavg"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error is %v, want %q in it", err, want)
		}
	}
	if len(o) != 2 || o[ImageFSAvailable].Capacity == 0 {
		t.Errorf("observed %v", o)
	}
	if err := m.Alarm(t.Context(), func() {}); err == nil || !strings.Contains(err.Error(), "watch for memory pressure") {
		t.Errorf("a kernel without pressure: %v", err)
	}
}

// The real kernel's alarm can be set, and ends with its context; or the kernel has none, and it is said.
func TestAlarm(t *testing.T) {
	if _, err := os.Stat("/proc/pressure/memory"); err != nil {
		if err := (Machine{Proc: "/proc"}).Alarm(t.Context(), func() {}); err == nil {
			t.Error("an alarm without pressure stall information")
		}
		return
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- Machine{Proc: "/proc"}.Alarm(ctx, func() {}) }()
	select {
	case err := <-done:
		t.Fatalf("it ended at once: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
