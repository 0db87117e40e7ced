package spec

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	certificatesv1 "k8s.io/api/certificates/v1"
	v1 "k8s.io/api/core/v1"
	"k8s.io/kubernetes/pkg/api/v1/resource"
	"k8s.io/kubernetes/pkg/fieldpath"
	"k8s.io/kubernetes/pkg/kubelet/envvars"
	"k8s.io/kubernetes/third_party/forked/golang/expansion"

	"github.com/rundigitalplatform/rookery/runtime"
)

// Sources reads the objects that a pod's spec refers to. A missing object is an
// error for which apierrors.IsNotFound holds; any other error means that it is
// not known whether it exists.
type Sources interface {
	ConfigMap(namespace, name string) (*v1.ConfigMap, error)
	Secret(namespace, name string) (*v1.Secret, error)
	// TrustBundles are those that a projected volume names: one by name, or those of
	// a signer. None is no error.
	TrustBundles(of *v1.ClusterTrustBundleProjection) ([]certificatesv1.ClusterTrustBundle, error)
}

// PodInfo is what the downward API can tell about a pod beside its spec.
type PodInfo struct {
	PodIPs, HostIPs []string
	Allocatable     v1.ResourceList // stands in for limits that are not set
	Services        []*v1.Service   // of all namespaces; those that the pod may see are chosen here
	// EnvFile reads one variable of a file in a volume; empty: the file does not name it.
	EnvFile func(ref *v1.FileKeySelector) (string, error)
}

// Env computes a container's environment as kubelet does: service variables, then
// envFrom, then env, a later one winning, with $(VAR) expanded from those before.
func Env(pod *v1.Pod, c *v1.Container, info PodInfo, src Sources) ([]runtime.EnvVar, error) {
	values := map[string]string{}
	service := serviceEnv(pod, info.Services)

	for _, from := range c.EnvFrom {
		data, err := envFrom(pod, from, src)
		if err != nil {
			return nil, err
		}
		for k, v := range data {
			// The one thing that a variable's name cannot hold.
			if k == "" || strings.ContainsAny(k, "=\x00") {
				continue
			}
			values[from.Prefix+k] = v
		}
	}
	// The mapping sees what was set so far before the service variables.
	mapping := expansion.MappingFuncFor(values, service)
	for _, e := range c.Env {
		v := e.Value
		switch {
		case v != "":
			v = expansion.Expand(v, mapping)
		case e.ValueFrom != nil:
			var set bool
			var err error
			if v, set, err = valueFrom(pod, c, e.ValueFrom, info, src); err != nil {
				return nil, err
			}
			if !set {
				continue
			}
		}
		values[e.Name] = v
	}
	for k, v := range service {
		if _, ok := values[k]; !ok {
			values[k] = v
		}
	}
	var out []runtime.EnvVar
	for _, k := range slices.Sorted(maps.Keys(values)) {
		out = append(out, runtime.EnvVar{Name: k, Value: values[k]})
	}
	return out, nil
}

func serviceEnv(pod *v1.Pod, services []*v1.Service) map[string]string {
	links := pod.Spec.EnableServiceLinks == nil || *pod.Spec.EnableServiceLinks
	var chosen []*v1.Service
	own := map[string]bool{}
	for _, s := range services {
		if links && s.Namespace == pod.Namespace {
			own[s.Name] = true
			chosen = append(chosen, s)
		}
	}
	for _, s := range services {
		// How a pod finds the API, whatever it says of links; a Service of its own
		// namespace with that name is nearer.
		if s.Namespace == v1.NamespaceDefault && s.Name == "kubernetes" && !own[s.Name] {
			chosen = append(chosen, s)
		}
	}
	out := map[string]string{}
	for _, e := range envvars.FromServices(chosen) {
		out[e.Name] = e.Value
	}
	return out
}

func envFrom(pod *v1.Pod, from v1.EnvFromSource, src Sources) (map[string]string, error) {
	switch {
	case from.ConfigMapRef != nil:
		cm, err := src.ConfigMap(pod.Namespace, from.ConfigMapRef.Name)
		if err != nil {
			return nil, optional(err, from.ConfigMapRef.Optional, "configmap", from.ConfigMapRef.Name)
		}
		return cm.Data, nil
	case from.SecretRef != nil:
		s, err := src.Secret(pod.Namespace, from.SecretRef.Name)
		if err != nil {
			return nil, optional(err, from.SecretRef.Optional, "secret", from.SecretRef.Name)
		}
		out := make(map[string]string, len(s.Data))
		for k, v := range s.Data {
			out[k] = string(v)
		}
		return out, nil
	}
	return nil, nil
}

func valueFrom(pod *v1.Pod, c *v1.Container, from *v1.EnvVarSource, info PodInfo, src Sources) (value string, set bool, err error) {
	switch {
	case from.FieldRef != nil:
		value, err = Field(pod, from.FieldRef.FieldPath, info)
		return value, true, err
	case from.ResourceFieldRef != nil:
		value, err = ResourceField(pod, c, from.ResourceFieldRef, info)
		return value, true, err
	case from.ConfigMapKeyRef != nil:
		ref := from.ConfigMapKeyRef
		cm, err := src.ConfigMap(pod.Namespace, ref.Name)
		if err != nil {
			return "", false, optional(err, ref.Optional, "configmap", ref.Name)
		}
		if v, ok := cm.Data[ref.Key]; ok {
			return v, true, nil
		}
		if isTrue(ref.Optional) {
			return "", false, nil
		}
		return "", false, fmt.Errorf("couldn't find key %v in ConfigMap %v/%v", ref.Key, pod.Namespace, ref.Name)
	case from.SecretKeyRef != nil:
		ref := from.SecretKeyRef
		s, err := src.Secret(pod.Namespace, ref.Name)
		if err != nil {
			return "", false, optional(err, ref.Optional, "secret", ref.Name)
		}
		if v, ok := s.Data[ref.Key]; ok {
			return string(v), true, nil
		}
		if isTrue(ref.Optional) {
			return "", false, nil
		}
		return "", false, fmt.Errorf("couldn't find key %v in Secret %v/%v", ref.Key, pod.Namespace, ref.Name)
	case from.FileKeyRef != nil:
		ref := from.FileKeyRef
		value, err = info.EnvFile(ref)
		if err == nil && value == "" && !isTrue(ref.Optional) {
			err = fmt.Errorf("environment variable key %q not found in file %q of volume %q", ref.Key, ref.Path, ref.VolumeName)
		}
		return value, value != "", err
	}
	return "", false, fmt.Errorf("valueFrom names no source")
}

// Field is the value of a downward API field.
func Field(pod *v1.Pod, path string, info PodInfo) (string, error) {
	switch path {
	case "spec.nodeName":
		return pod.Spec.NodeName, nil
	case "spec.serviceAccountName":
		return pod.Spec.ServiceAccountName, nil
	case "status.hostIP":
		return first(info.HostIPs), nil
	case "status.hostIPs":
		return strings.Join(info.HostIPs, ","), nil
	case "status.podIP":
		return first(info.PodIPs), nil
	case "status.podIPs":
		return strings.Join(info.PodIPs, ","), nil
	}
	return fieldpath.ExtractFieldPathAsString(pod, path)
}

// ResourceField is the value of a container's request or limit; a limit that is
// not set is what the peer has to give.
func ResourceField(pod *v1.Pod, c *v1.Container, ref *v1.ResourceFieldSelector, info PodInfo) (string, error) {
	if ref.ContainerName != "" && (c == nil || ref.ContainerName != c.Name) {
		if c = Find(pod, ref.ContainerName); c == nil {
			return "", fmt.Errorf("container %s not found", ref.ContainerName)
		}
	}
	merged := c.DeepCopy()
	resource.MergeContainerResourceLimits(merged, info.Allocatable)
	return resource.ExtractContainerResourceValue(ref, merged)
}
