package node

import (
	"context"
	"fmt"

	v1 "k8s.io/api/core/v1"

	"github.com/rundigitalplatform/rookery/node/spec"
	"github.com/rundigitalplatform/rookery/node/volumes"
	"github.com/rundigitalplatform/rookery/runtime"
)

// mountImages makes the files of the images readable that a container mounts, and
// returns where they are by the name of the volume.
func (w *worker) mountImages(ctx context.Context, pod *v1.Pod, sandbox *runtime.Sandbox, c *v1.Container) (map[string]string, *waiting) {
	var out map[string]string
	for _, vm := range c.VolumeMounts {
		v := volumes.Find(pod, vm.Name)
		if v == nil || v.Image == nil || out[v.Name] != "" {
			continue
		}
		if v.Image.Reference == "" {
			return nil, &waiting{"CreateContainerConfigError", fmt.Sprintf("volume %q names no image: set volumes[].image.reference", v.Name), retryConfig}
		}
		if _, fault := w.ensureImage(ctx, pod, c.Name, v.Image.Reference, v.Image.PullPolicy); fault != nil {
			return nil, fault
		}
		call, cancel := context.WithTimeout(ctx, callTimeout)
		path, err := w.a.cfg.Runtime.MountImage(call, sandbox.ID, v.Image.Reference)
		cancel()
		if err != nil {
			w.a.images.Forget(v.Image.Reference) // that it is not here may be the reason
			w.containerEvent(c.Name, v1.EventTypeWarning, "Failed", "Error: %v", err)
			return nil, &waiting{"CreateContainerError", fmt.Sprintf("volume %q: %v", v.Name, err), retryConfig}
		}
		if out == nil {
			out = map[string]string{}
		}
		out[v.Name] = path
	}
	return out, nil
}

// imageRefs are the images that a pod names, of containers and of volumes.
func imageRefs(pod *v1.Pod) []string {
	var out []string
	for _, c := range spec.Containers(pod) {
		out = append(out, c.Image)
	}
	for i := range pod.Spec.Volumes {
		if image := pod.Spec.Volumes[i].Image; image != nil && image.Reference != "" {
			out = append(out, image.Reference)
		}
	}
	return out
}
