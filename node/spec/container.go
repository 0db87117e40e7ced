package spec

import (
	"fmt"

	v1 "k8s.io/api/core/v1"
	"k8s.io/kubernetes/third_party/forked/golang/expansion"

	"github.com/rundigitalplatform/rookery/runtime"
)

// logMaxBytes is kubelet's containerLogMaxSize: enough for a person, little for an SD card.
const logMaxBytes = 10 << 20

// Input is what a container is made from beside its pod.
type Input struct {
	Attempt        int
	Info           PodInfo
	Image          runtime.Image   // the local image, already there
	Mounts         []runtime.Mount // resolved by node/volumes
	MemoryCapacity int64           // of the machine, in bytes
	ProcessesOf    string          // id of the container that an ephemeral one looks at
	SeccompDir     string          // where profiles of type Localhost are
	Devices        []string        // paths that the container was given
	Host           Host
}

// Container translates one container of the pod. An error is a fault of the spec or
// of an object that it refers to: the waiting reason CreateContainerConfigError.
func Container(pod *v1.Pod, c *v1.Container, in Input, src Sources) (runtime.ContainerSpec, error) {
	env, err := Env(pod, c, in.Info, src)
	if err != nil {
		return runtime.ContainerSpec{}, err
	}
	out := runtime.ContainerSpec{
		Name:        ContainerName(pod, c.Name, in.Attempt),
		Image:       c.Image,
		Labels:      containerLabels(pod, c, in.Attempt),
		Env:         env,
		WorkDir:     c.WorkingDir,
		Mounts:      in.Mounts,
		Devices:     in.Devices,
		Stdin:       c.Stdin,
		StdinOnce:   c.StdinOnce,
		TTY:         c.TTY,
		ProcessesOf: in.ProcessesOf,
		LogMaxBytes: logMaxBytes,
	}
	mapping := envMapping(env)
	for _, word := range c.Command {
		out.Command = append(out.Command, expansion.Expand(word, mapping))
	}
	for _, word := range c.Args {
		out.Args = append(out.Args, expansion.Expand(word, mapping))
	}
	if c.Lifecycle != nil && c.Lifecycle.StopSignal != nil {
		out.StopSignal = string(*c.Lifecycle.StopSignal)
	}
	applyResources(&out, pod, c, in.MemoryCapacity)
	if err := applySecurity(&out, pod, c, in); err != nil {
		return runtime.ContainerSpec{}, err
	}
	return out, nil
}

func envMapping(env []runtime.EnvVar) func(string) string {
	values := make(map[string]string, len(env))
	for _, e := range env {
		values[e.Name] = e.Value
	}
	return expansion.MappingFuncFor(values)
}

// ExpandSubPath replaces $(VAR) in a subPathExpr; unlike elsewhere a variable that
// does not exist is an error, for the path would be another one than meant.
func ExpandSubPath(expr string, env []runtime.EnvVar) (string, error) {
	values := make(map[string]string, len(env))
	for _, e := range env {
		values[e.Name] = e.Value
	}
	var missing string
	out := expansion.Expand(expr, func(name string) string {
		v, ok := values[name]
		if !ok {
			missing = name
		}
		return v
	})
	if missing != "" {
		return "", fmt.Errorf("missing value for %q in subPathExpr %q", missing, expr)
	}
	return out, nil
}
