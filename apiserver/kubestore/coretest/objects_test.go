// Package coretest measures kubestore with real objects of Kubernetes' core
// group, and checks that encoding them leaves shared objects alone. It is apart from
// kubestore so that the tests there build without k8s.io/kubernetes. It has no code
// besides tests, and nobody calls it.
package coretest

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/kubernetes/pkg/apis/core"
	corescheme "k8s.io/kubernetes/pkg/apis/core/v1"

	"github.com/rundigitalplatform/rookery/apiserver/kubestore"
	"github.com/rundigitalplatform/rookery/raftstore"
)

// newCodec is the codec that the API server stores the core group with.
func newCodec(t testing.TB) (runtime.Codec, *runtime.Scheme) {
	t.Helper()
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{core.AddToScheme, corescheme.AddToScheme} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	codecs := serializer.NewCodecFactory(scheme)
	internal := schema.GroupVersion{Version: runtime.APIVersionInternal}
	return codecs.CodecForVersions(protobuf.NewSerializer(scheme, scheme), codecs.UniversalDeserializer(), corev1.SchemeGroupVersion, internal), scheme
}

func openConfigMaps(t testing.TB, store raftstore.Store, uncached bool) *kubestore.Storage {
	return open(t, store, "configmaps", uncached, func() runtime.Object { return &core.ConfigMap{} }, func() runtime.Object { return &core.ConfigMapList{} })
}

func openPods(t testing.TB, store raftstore.Store, uncached bool) *kubestore.Storage {
	return open(t, store, "pods", uncached, func() runtime.Object { return &core.Pod{} }, func() runtime.Object { return &core.PodList{} })
}

func open(t testing.TB, store raftstore.Store, resource string, uncached bool, obj, list func() runtime.Object) *kubestore.Storage {
	t.Helper()
	codec, _ := newCodec(t)
	s, err := kubestore.New(store, kubestore.Config{
		Codec: codec, NewFunc: obj, NewListFunc: list, Uncached: uncached,
		ResourcePrefix: "/registry/core/" + resource, GroupResource: schema.GroupResource{Resource: resource},
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func objectMeta(name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{
		Namespace: "default", Name: name, UID: types.UID("6c9d2a52-7a1e-4b52-9c55-" + name), Generation: 1,
		CreationTimestamp: metav1.NewTime(time.Unix(1.7e9, 0)),
		Labels:            map[string]string{"app.kubernetes.io/name": "hello", "pod-template-hash": "5d5c7f9b8d"},
		ManagedFields: []metav1.ManagedFieldsEntry{{
			Manager: "kubectl", Operation: metav1.ManagedFieldsOperationApply, APIVersion: "v1", FieldsType: "FieldsV1",
			Time:     &metav1.Time{Time: time.Unix(1.7e9, 0)},
			FieldsV1: metav1.NewFieldsV1(`{"f:metadata":{"f:labels":{".":{},"f:app.kubernetes.io/name":{}}},"f:spec":{"f:containers":{}}}`),
		}},
	}
}

// configMap has 512 bytes of data.
func configMap(i int) *core.ConfigMap {
	return &core.ConfigMap{ObjectMeta: objectMeta(fmt.Sprintf("cm-%06d", i)), Data: map[string]string{"a": strings.Repeat("x", 256), "b": strings.Repeat("y", 256)}}
}

// pod is as one of a Deployment's: two containers, probes, volumes, a full status.
func pod(i int) *core.Pod {
	container := func(name string) core.Container {
		return core.Container{
			Name: name, Image: "registry.example/hello/" + name + ":1.2.3", Command: []string{"/bin/" + name, "--listen", ":8080"},
			Env:          []core.EnvVar{{Name: "MODE", Value: "production"}, {Name: "PEER", Value: "p1"}},
			Ports:        []core.ContainerPort{{Name: "http", ContainerPort: 8080, Protocol: core.ProtocolTCP}},
			VolumeMounts: []core.VolumeMount{{Name: "config", MountPath: "/etc/hello"}, {Name: "token", MountPath: "/var/run/secrets/kubernetes.io/serviceaccount", ReadOnly: true}},
			ReadinessProbe: &core.Probe{
				ProbeHandler:  core.ProbeHandler{Exec: &core.ExecAction{Command: []string{"/bin/check"}}},
				PeriodSeconds: 5, TimeoutSeconds: 1, SuccessThreshold: 1, FailureThreshold: 3,
			},
			TerminationMessagePath: "/dev/termination-log", ImagePullPolicy: core.PullIfNotPresent,
		}
	}
	status := func(name string) core.ContainerStatus {
		return core.ContainerStatus{Name: name, Ready: true, Image: "registry.example/hello/" + name + ":1.2.3", ImageID: strings.Repeat("0", 64), ContainerID: "podman://" + strings.Repeat("f", 64)}
	}
	grace := int64(30)
	p := &core.Pod{ObjectMeta: objectMeta(fmt.Sprintf("hello-5d5c7f9b8d-%06d", i))}
	p.Spec = core.PodSpec{
		Containers:                    []core.Container{container("hello"), container("counts")},
		Volumes:                       []core.Volume{{Name: "config", VolumeSource: core.VolumeSource{EmptyDir: &core.EmptyDirVolumeSource{}}}},
		RestartPolicy:                 core.RestartPolicyAlways,
		TerminationGracePeriodSeconds: &grace, DNSPolicy: core.DNSClusterFirst,
		ServiceAccountName: "default", NodeName: "p1", SchedulerName: "default-scheduler",
		SecurityContext: &core.PodSecurityContext{},
		Tolerations:     []core.Toleration{{Key: "node.kubernetes.io/not-ready", Operator: core.TolerationOpExists, Effect: core.TaintEffectNoExecute}},
	}
	p.Status = core.PodStatus{
		Phase: core.PodRunning, HostIPs: []core.HostIP{{IP: "10.0.0.1"}}, PodIPs: []core.PodIP{{IP: "10.42.0.7"}},
		ContainerStatuses: []core.ContainerStatus{status("hello"), status("counts")},
	}
	for _, c := range []core.PodConditionType{core.PodScheduled, core.PodReady, "Initialized", "ContainersReady"} {
		p.Status.Conditions = append(p.Status.Conditions, core.PodCondition{Type: c, Status: core.ConditionTrue, LastTransitionTime: metav1.NewTime(time.Unix(1.7e9, 0))})
	}
	return p
}

func fill(t testing.TB, configMaps, pods *kubestore.Storage, nConfigMaps, nPods int) {
	t.Helper()
	for i := range nConfigMaps {
		if err := configMaps.Create(context.Background(), configMapKey(i), configMap(i), nil, 0); err != nil {
			t.Fatal(err)
		}
	}
	for i := range nPods {
		if err := pods.Create(context.Background(), fmt.Sprintf("/registry/core/pods/default/hello-%06d", i), pod(i), nil, 0); err != nil {
			t.Fatal(err)
		}
	}
}

func configMapKey(i int) string { return fmt.Sprintf("/registry/core/configmaps/default/cm-%06d", i) }
