package podman

import (
	"cmp"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/containers/podman/v4/pkg/domain/entities"
	"github.com/containers/podman/v4/pkg/signal"
	"github.com/containers/podman/v4/pkg/specgen"
	"github.com/containers/storage/pkg/idtools"
	storage "github.com/containers/storage/types"
	spec "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/rundigitalplatform/rookery/runtime"
)

// labelContainer tells a container from its sandbox's infra container, which
// Podman gives the sandbox's labels; its value is ContainerSpec.Name.
const labelContainer = "io.rookery.container"

// labelHostIPC on a pod says that its containers use the host's IPC namespace.
// Podman 4.3 cannot give that to a pod, only to each container.
const labelHostIPC = "io.rookery.host-ipc"

// labelHandler on a pod is the handler that its containers are created with.
const labelHandler = "io.rookery.handler"

// labelStdinOnce on a container says ContainerSpec.StdinOnce, which Podman does not know.
const labelStdinOnce = "io.rookery.stdin-once"

// logDriver writes a file that is rotated by size and read by Logs.
const logDriver = "k8s-file"

// limits is what this machine does not allow, however the spec asks for it.
type limits struct {
	// keepOOMScore: CAP_SYS_RESOURCE is missing, as in sandboxes and CI, and the kernel refuses to
	// lower an OOM score. The container then keeps the engine's.
	keepOOMScore bool
}

// readLimits reads a /proc/PID/status file.
func readLimits(path string) (limits, error) {
	const capSysResource = 24 // linux/capability.h
	data, err := os.ReadFile(path)
	if err != nil {
		return limits{}, fmt.Errorf("read capabilities: %w", err)
	}
	for line := range strings.Lines(string(data)) {
		value, ok := strings.CutPrefix(line, "CapEff:")
		if !ok {
			continue
		}
		caps, err := strconv.ParseUint(strings.TrimSpace(value), 16, 64)
		if err != nil {
			return limits{}, fmt.Errorf("read capabilities in %s: %w", path, err)
		}
		return limits{keepOOMScore: caps&(1<<capSysResource) == 0}, nil
	}
	return limits{}, fmt.Errorf("read capabilities: no CapEff in %s", path)
}

// infraName is the name of a sandbox's infra container: known beforehand, so that
// it can be started and inspected without asking for the pod again.
func infraName(sandbox string) string { return sandbox + "-infra" }

func labels(owner, sandbox string, more map[string]string) map[string]string {
	out := map[string]string{}
	maps.Copy(out, more)
	out[runtime.LabelOwner], out[runtime.LabelSandbox] = owner, sandbox
	return out
}

// podSpec is the pod for a sandbox. Every namespace is given, so that
// containers.conf cannot change what a sandbox is.
func podSpec(owner string, s runtime.SandboxSpec) *entities.PodSpec {
	pod := specgen.PodSpecGenerator{}
	pod.Name = s.Name
	pod.Hostname = s.Hostname
	pod.InfraName = infraName(s.Name)
	pod.Labels = labels(owner, s.Name, s.Labels)
	pod.ExitPolicy = "continue" // a pod whose containers have ended stays: node decides
	pod.SharedNamespaces = []string{"net", "uts", "ipc"}
	pod.NetNS = specgen.Namespace{NSMode: specgen.NoNetwork}
	pod.NoManageResolvConf, pod.NoManageHosts = true, true // node mounts its own
	pod.Sysctl = s.Sysctls
	pod.CgroupParent = s.CgroupParent
	if s.HostNetwork {
		pod.NetNS = specgen.Namespace{NSMode: specgen.Host}
		pod.UtsNs = specgen.Namespace{NSMode: specgen.Host} // the host's network goes with the host's name
		pod.Hostname = ""
	}
	if s.HostIPC {
		pod.SharedNamespaces = []string{"net", "uts"}
		pod.Labels[labelHostIPC] = "true"
	}
	if s.HostPID {
		pod.Pid = specgen.Namespace{NSMode: specgen.Host}
	}
	if s.HostPID || s.ShareProcesses {
		pod.SharedNamespaces = append(pod.SharedNamespaces, "pid")
	}
	if s.IDs.Size > 0 {
		ids := []idtools.IDMap{{HostID: int(s.IDs.First), Size: int(s.IDs.Size)}}
		pod.Userns = specgen.Namespace{NSMode: specgen.Private}
		pod.IDMappings = &storage.IDMappingOptions{UIDMap: ids, GIDMap: ids}
	}
	if s.Handler != "" {
		pod.Labels[labelHandler] = s.Handler
	}
	return &entities.PodSpec{PodSpecGen: pod}
}

// home is what a container must know of the sandbox that it is created in.
type home struct {
	id, name string
	hostIPC  bool
	pid      int // of the infra container; 0: not known, or it does not run
	handler  string
}

func homeOf(s runtime.Sandbox) home {
	return home{s.ID, s.Name, s.Labels[labelHostIPC] != "", s.PID, s.Labels[labelHandler]}
}

// containerSpec is the container c in the sandbox, from the image called image.
func containerSpec(owner string, in home, image string, c runtime.ContainerSpec, l limits) (*specgen.SpecGenerator, error) {
	g := &specgen.SpecGenerator{}
	g.Name, g.Pod, g.OCIRuntime = c.Name, in.id, in.handler
	g.Image, g.RawImageName = image, c.Image
	g.Labels = labels(owner, in.name, c.Labels)
	g.Labels[labelContainer] = c.Name
	g.Entrypoint, g.Command = c.Command, c.Args
	g.WorkDir = c.WorkDir
	g.Stdin, g.Terminal = c.Stdin, c.TTY
	if c.StdinOnce {
		g.Labels[labelStdinOnce] = "true"
	}
	g.RestartPolicy = "no" // node restarts, with backoff
	g.LogConfiguration = &specgen.LogConfig{Driver: logDriver, Size: c.LogMaxBytes}
	g.UseImageResolvConf, g.UseImageHosts = true, true // Podman's own would shadow or race node's mounts
	g.Systemd = "false"                                // the default guesses by the command's name
	g.ImageVolumeMode = "anonymous"
	if c.ProcessesOf != "" {
		g.PidNS = specgen.Namespace{NSMode: specgen.FromContainer, Value: c.ProcessesOf}
	}
	if in.hostIPC {
		g.IpcNS = specgen.Namespace{NSMode: specgen.Host}
	}
	if len(c.Env) > 0 {
		g.Env = make(map[string]string, len(c.Env))
		for _, e := range c.Env {
			g.Env[e.Name] = e.Value
		}
	}
	for _, m := range c.Mounts {
		mount, err := bind(m)
		if err != nil {
			return nil, err
		}
		g.Mounts = append(g.Mounts, mount)
	}
	for _, d := range c.Devices {
		g.Devices = append(g.Devices, spec.LinuxDevice{Path: d})
	}
	if c.StopSignal != "" {
		s, err := signal.ParseSignalNameOrNumber(c.StopSignal)
		if err != nil {
			return nil, fmt.Errorf("stop signal %q is not known: %w", c.StopSignal, err)
		}
		g.StopSignal = &s
	}
	resources(g, c, l)
	security(g, c)
	return g, nil
}

// holderSpec is the container that keeps an image mounted for a sandbox. It is never started.
func holderSpec(owner string, in home, image string) *specgen.SpecGenerator {
	image = strings.TrimPrefix(image, "sha256:")
	g := &specgen.SpecGenerator{}
	g.Name, g.Pod, g.Image = in.name+"-image-"+image[:min(12, len(image))], in.id, image
	g.Labels = labels(owner, in.name, nil)
	g.Entrypoint, g.Command = []string{"/"}, nil // an image of files only has none
	g.RestartPolicy = "no"
	g.UseImageResolvConf, g.UseImageHosts = true, true
	g.Systemd, g.ImageVolumeMode = "false", "ignore"
	return g
}

func bind(m runtime.Mount) (spec.Mount, error) {
	for _, p := range []string{m.Source, m.Target} {
		if !filepath.IsAbs(p) {
			return spec.Mount{}, fmt.Errorf("mount %s on %s: %q is not an absolute path", m.Source, m.Target, p)
		}
	}
	options := []string{"rbind", "rw"}
	if m.ReadOnly {
		options[1] = "ro"
	}
	if m.NoExec {
		options = append(options, "noexec")
	}
	if m.Propagation != "" {
		options = append(options, m.Propagation)
	}
	return spec.Mount{Type: "bind", Source: m.Source, Destination: m.Target, Options: options}, nil
}

// defaultPeriod is the kernel's, in microseconds.
const defaultPeriod = 100_000

func resources(g *specgen.SpecGenerator, c runtime.ContainerSpec, l limits) {
	res := &spec.LinuxResources{}
	if c.CPUShares != 0 || c.CPUQuota != 0 {
		res.CPU = &spec.LinuxCPU{}
		if c.CPUShares != 0 {
			res.CPU.Shares = &c.CPUShares
		}
		if c.CPUQuota != 0 {
			period := cmp.Or(c.CPUPeriod, defaultPeriod)
			res.CPU.Quota, res.CPU.Period = &c.CPUQuota, &period
		}
	}
	if c.MemoryLimit != 0 {
		res.Memory = &spec.LinuxMemory{Limit: &c.MemoryLimit, Swap: &c.MemoryLimit} // memory and swap together: no swap
	}
	if res.CPU != nil || res.Memory != nil {
		g.ResourceLimits = res
	}
	if c.OOMScoreAdj != nil && (*c.OOMScoreAdj >= 0 || !l.keepOOMScore) {
		g.OOMScoreAdj = c.OOMScoreAdj
	}
}

func security(g *specgen.SpecGenerator, c runtime.ContainerSpec) {
	g.User = c.User
	for _, gid := range c.Groups {
		g.Groups = append(g.Groups, strconv.FormatInt(gid, 10))
	}
	g.Privileged = c.Privileged
	g.ReadOnlyFilesystem = c.ReadOnlyRootfs
	g.NoNewPrivileges = c.NoNewPrivileges
	if c.ProcUnmasked {
		g.Unmask = []string{"ALL"}
	}
	g.CapAdd, g.CapDrop = c.CapAdd, c.CapDrop
	g.ApparmorProfile, g.SelinuxOpts = c.AppArmor, c.SELinux
	g.SeccompProfilePath = c.SeccompProfile
	if c.SeccompUnconfined {
		g.SeccompProfilePath = "unconfined"
	}
}
