package podman

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rundigitalplatform/rookery/runtime"
)

// fields returns the given top-level fields of what is sent to Podman.
func fields(t *testing.T, spec any, names ...string) string {
	t.Helper()
	data, err := json.Marshal(spec)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]json.RawMessage{}
	if err := json.Unmarshal(data, &all); err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, name := range names {
		out = append(out, name+"="+string(all[name]))
	}
	return strings.Join(out, " ")
}

func TestPodSpec(t *testing.T) {
	for _, c := range []struct {
		name   string
		in     runtime.SandboxSpec
		fields string
		want   string
	}{
		{"plain", runtime.SandboxSpec{Name: "a", Hostname: "h"}, "name hostname infra_name netns shared_namespaces no_manage_resolv_conf no_manage_hosts exit_policy",
			`name="a" hostname="h" infra_name="a-infra" netns={"nsmode":"none"} shared_namespaces=["net","uts","ipc"] no_manage_resolv_conf=true no_manage_hosts=true exit_policy="continue"`},
		{"labels", runtime.SandboxSpec{Name: "a", Labels: map[string]string{"x": "y", runtime.LabelOwner: "forged"}}, "labels",
			`labels={"io.rookery.owner":"me","io.rookery.sandbox":"a","x":"y"}`},
		{"host network", runtime.SandboxSpec{Name: "a", HostNetwork: true}, "netns utsns hostname", `netns={"nsmode":"host"} utsns={"nsmode":"host"} hostname=`},
		{"host pid", runtime.SandboxSpec{Name: "a", HostPID: true}, "pidns shared_namespaces", `pidns={"nsmode":"host"} shared_namespaces=["net","uts","ipc","pid"]`},
		{"shared processes", runtime.SandboxSpec{Name: "a", ShareProcesses: true}, "pidns shared_namespaces", `pidns={} shared_namespaces=["net","uts","ipc","pid"]`},
		{"host ipc", runtime.SandboxSpec{Name: "a", HostIPC: true}, "shared_namespaces labels",
			`shared_namespaces=["net","uts"] labels={"io.rookery.host-ipc":"true","io.rookery.owner":"me","io.rookery.sandbox":"a"}`},
		{"users of its own", runtime.SandboxSpec{Name: "a", IDs: runtime.IDRange{First: 131072, Size: 65536}}, "userns idmappings",
			`userns={"nsmode":"private"} idmappings={"HostUIDMapping":false,"HostGIDMapping":false,"UIDMap":[{"container_id":0,"host_id":131072,"size":65536}],"GIDMap":[{"container_id":0,"host_id":131072,"size":65536}],"AutoUserNs":false,"AutoUserNsOpts":{"Size":0,"InitialSize":0,"PasswdFile":"","GroupFile":"","AdditionalUIDMappings":null,"AdditionalGIDMappings":null}}`},
		{"sysctl, cgroup", runtime.SandboxSpec{Name: "a", Sysctls: map[string]string{"net.core.somaxconn": "9"}, CgroupParent: "/pods"}, "sysctl cgroup_parent",
			`sysctl={"net.core.somaxconn":"9"} cgroup_parent="/pods"`},
	} {
		if got := fields(t, podSpec("me", c.in).PodSpecGen, strings.Fields(c.fields)...); got != c.want {
			t.Errorf("%s:\n got %s\nwant %s", c.name, got, c.want)
		}
	}
}

func TestContainerSpec(t *testing.T) {
	low, high := -500, 500
	for _, c := range []struct {
		name   string
		in     runtime.ContainerSpec
		home   home
		limits limits
		fields string
		want   string
	}{
		{"plain", runtime.ContainerSpec{Name: "c", Image: "hello:1"}, home{}, limits{}, "name pod image raw_image_name entrypoint command restart_policy log_configuration use_image_resolve_conf use_image_hosts resource_limits",
			`name="c" pod="id" image="localhost/hello:1" raw_image_name="hello:1" entrypoint= command= restart_policy="no" log_configuration={"driver":"k8s-file"} use_image_resolve_conf=true use_image_hosts=true resource_limits=`},
		{"command", runtime.ContainerSpec{Command: []string{"/a"}, Args: []string{"b", "c"}, WorkDir: "/w", Stdin: true, TTY: true}, home{}, limits{}, "entrypoint command work_dir stdin terminal",
			`entrypoint=["/a"] command=["b","c"] work_dir="/w" stdin=true terminal=true`},
		{"labels", runtime.ContainerSpec{Name: "c", Labels: map[string]string{"x": "y"}}, home{}, limits{}, "labels",
			`labels={"io.rookery.container":"c","io.rookery.owner":"me","io.rookery.sandbox":"sandbox","x":"y"}`},
		{"env: the last wins", runtime.ContainerSpec{Env: []runtime.EnvVar{{Name: "A", Value: "1"}, {Name: "A", Value: "2"}}}, home{}, limits{}, "env", `env={"A":"2"}`},
		{"mounts", runtime.ContainerSpec{Mounts: []runtime.Mount{{Source: "/s", Target: "/t"}, {Source: "/s2", Target: "/t2", ReadOnly: true, Propagation: "rslave"}}}, home{}, limits{}, "mounts",
			`mounts=[{"destination":"/t","type":"bind","source":"/s","options":["rbind","rw"]},{"destination":"/t2","type":"bind","source":"/s2","options":["rbind","ro","rslave"]}]`},
		{"cpu", runtime.ContainerSpec{Resources: runtime.Resources{CPUShares: 512, CPUQuota: 50000}}, home{}, limits{}, "resource_limits", `resource_limits={"cpu":{"shares":512,"quota":50000,"period":100000}}`},
		{"memory without swap", runtime.ContainerSpec{Resources: runtime.Resources{MemoryLimit: 1 << 20}}, home{}, limits{}, "resource_limits", `resource_limits={"memory":{"limit":1048576,"swap":1048576}}`},
		{"oom score", runtime.ContainerSpec{OOMScoreAdj: &low}, home{}, limits{}, "oom_score_adj", `oom_score_adj=-500`},
		{"oom score that the kernel refuses", runtime.ContainerSpec{OOMScoreAdj: &low}, home{}, limits{keepOOMScore: true}, "oom_score_adj", `oom_score_adj=`},
		{"raised oom score", runtime.ContainerSpec{OOMScoreAdj: &high}, home{}, limits{keepOOMScore: true}, "oom_score_adj", `oom_score_adj=500`},
		{"security", runtime.ContainerSpec{User: "1:2", Groups: []int64{3}, Privileged: true, ReadOnlyRootfs: true, NoNewPrivileges: true, CapAdd: []string{"NET_ADMIN"}, CapDrop: []string{"ALL"}}, home{}, limits{},
			"user groups privileged read_only_filesystem no_new_privileges cap_add cap_drop",
			`user="1:2" groups=["3"] privileged=true read_only_filesystem=true no_new_privileges=true cap_add=["NET_ADMIN"] cap_drop=["ALL"]`},
		{"profiles", runtime.ContainerSpec{AppArmor: "mine", SELinux: []string{"type:t"}, ProcUnmasked: true}, home{}, limits{}, "apparmor_profile selinux_opts unmask",
			`apparmor_profile="mine" selinux_opts=["type:t"] unmask=["ALL"]`},
		{"seccomp", runtime.ContainerSpec{SeccompUnconfined: true}, home{}, limits{}, "seccomp_profile_path", `seccomp_profile_path="unconfined"`},
		{"stop signal", runtime.ContainerSpec{StopSignal: "SIGQUIT"}, home{}, limits{}, "stop_signal", `stop_signal=3`},
		{"log size", runtime.ContainerSpec{LogMaxBytes: 1024}, home{}, limits{}, "log_configuration", `log_configuration={"driver":"k8s-file","size":1024}`},
		{"host ipc", runtime.ContainerSpec{}, home{hostIPC: true}, limits{}, "ipcns", `ipcns={"nsmode":"host"}`},
		{"device", runtime.ContainerSpec{Devices: []string{"/dev/fuse"}}, home{}, limits{}, "devices", `devices=[{"path":"/dev/fuse","type":"","major":0,"minor":0}]`},
	} {
		c.home.id, c.home.name = "id", "sandbox"
		spec, err := containerSpec("me", c.home, "localhost/hello:1", c.in, c.limits)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if got := fields(t, spec, strings.Fields(c.fields)...); got != c.want {
			t.Errorf("%s:\n got %s\nwant %s", c.name, got, c.want)
		}
	}
}

func TestContainerSpecRefuses(t *testing.T) {
	for want, in := range map[string]runtime.ContainerSpec{
		`stop signal "SIGNOPE" is not known`: {StopSignal: "SIGNOPE"},
		`"data" is not an absolute path`:     {Mounts: []runtime.Mount{{Source: "data", Target: "/t"}}},
	} {
		if _, err := containerSpec("me", home{}, "a", in, limits{}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error is %v, want %q", err, want)
		}
	}
}

func TestReadLimits(t *testing.T) {
	path := filepath.Join(t.TempDir(), "status")
	for caps, want := range map[string]limits{
		"000001ffffffffff": {},
		"000001fffeffffff": {keepOOMScore: true},
	} {
		if err := os.WriteFile(path, []byte("Name:\tx\nCapEff:\t"+caps+"\nSeccomp:\t0\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := readLimits(path); err != nil || got != want {
			t.Errorf("CapEff %s: %+v, %v", caps, got, err)
		}
	}
}

func TestTranslateEvent(t *testing.T) {
	attributes := func(container string) map[string]string {
		out := map[string]string{runtime.LabelOwner: "me", runtime.LabelSandbox: "s"}
		if container != "" {
			out[labelContainer] = container
		}
		return out
	}
	for action, want := range map[string]runtime.EventType{"start": runtime.ContainerStarted, "died": runtime.ContainerDied, "remove": runtime.ContainerRemoved, "create": "", "init": "", "cleanup": "", "exec": "", "exec_died": ""} {
		var e event
		e.Action, e.Actor.ID, e.Actor.Attributes = action, "id", attributes("c")
		got, ok := translateEvent(e)
		if ok != (want != "") || ok && got != (runtime.Event{Type: want, Sandbox: "s", Container: "id"}) {
			t.Errorf("%s of a container: %+v, %v", action, got, ok)
		}
		e.Actor.Attributes = attributes("")
		if want == runtime.ContainerStarted {
			want = runtime.SandboxStarted
		} else if want != "" {
			want = runtime.SandboxEnded
		}
		got, ok = translateEvent(e)
		if ok != (want != "") || ok && got != (runtime.Event{Type: want, Sandbox: "s"}) {
			t.Errorf("%s of an infra container: %+v, %v", action, got, ok)
		}
	}
}
