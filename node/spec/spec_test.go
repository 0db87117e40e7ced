package spec

import (
	"fmt"
	"strings"
	"testing"

	certificatesv1 "k8s.io/api/certificates/v1"
	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/yaml"

	"github.com/rundigitalplatform/rookery/runtime"
)

type objects struct {
	configMaps map[string]map[string]string
	secrets    map[string]map[string]string
}

func (o objects) ConfigMap(_, name string) (*v1.ConfigMap, error) {
	data, ok := o.configMaps[name]
	if !ok {
		return nil, apierrors.NewNotFound(schema.GroupResource{Resource: "configmaps"}, name)
	}
	return &v1.ConfigMap{Data: data}, nil
}

func (o objects) Secret(_, name string) (*v1.Secret, error) {
	data, ok := o.secrets[name]
	if !ok {
		return nil, apierrors.NewNotFound(schema.GroupResource{Resource: "secrets"}, name)
	}
	out := map[string][]byte{}
	for k, v := range data {
		out[k] = []byte(v)
	}
	return &v1.Secret{Data: out}, nil
}

func (objects) TrustBundles(*v1.ClusterTrustBundleProjection) ([]certificatesv1.ClusterTrustBundle, error) {
	return nil, nil
}

func podOf(t *testing.T, podSpec string) *v1.Pod {
	t.Helper()
	pod := &v1.Pod{}
	pod.Name, pod.Namespace, pod.UID = "a", "shop", "u1"
	pod.Labels = map[string]string{"tier": "front"}
	if err := yaml.UnmarshalStrict([]byte(podSpec), &pod.Spec); err != nil {
		t.Fatal(err)
	}
	return pod
}

func TestEnv(t *testing.T) {
	info := PodInfo{
		PodIPs: []string{"10.42.0.7"}, HostIPs: []string{"192.0.2.1"},
		Allocatable: v1.ResourceList{v1.ResourceCPU: resource.MustParse("2"), v1.ResourceMemory: resource.MustParse("1Gi")},
		EnvFile: func(ref *v1.FileKeySelector) (string, error) {
			return map[string]string{"v env A": "fv"}[ref.VolumeName+" "+ref.Path+" "+ref.Key], nil
		},
	}
	src := objects{
		configMaps: map[string]map[string]string{"c": {"k": "cv", "x": "1"}},
		secrets:    map[string]map[string]string{"s": {"p": "sv"}},
	}
	for _, tt := range []struct{ name, container, want string }{
		{"expansion", `env: [{name: A, value: "1"}, {name: B, value: "$(A)2 $(NO) $$(A)"}]`, `A=1 B=12 $(NO) $(A)`},
		{"order decides", `env: [{name: B, value: "$(A)"}, {name: A, value: "1"}]`, `A=1 B=$(A)`},
		{"keys", `env: [{name: A, valueFrom: {configMapKeyRef: {name: c, key: k}}}, {name: B, valueFrom: {secretKeyRef: {name: s, key: p}}}]`, `A=cv B=sv`},
		{"optional", `env: [{name: A, valueFrom: {configMapKeyRef: {name: none, key: k, optional: true}}}, {name: B, valueFrom: {secretKeyRef: {name: s, key: q, optional: true}}}]`, ``},
		{"missing", `env: [{name: A, valueFrom: {configMapKeyRef: {name: none, key: k}}}]`, `error: configmap "none" not found`},
		{"missing key", `env: [{name: A, valueFrom: {secretKeyRef: {name: s, key: q}}}]`, `error: couldn't find key q in Secret shop/s`},
		{"file", `env: [{name: A, valueFrom: {fileKeyRef: {volumeName: v, path: env, key: A}}}, {name: B, valueFrom: {fileKeyRef: {volumeName: v, path: env, key: B, optional: true}}}]`, `A=fv`},
		{"missing in file", `env: [{name: A, valueFrom: {fileKeyRef: {volumeName: v, path: env, key: B}}}]`, `error: environment variable key "B" not found in file "env" of volume "v"`},
		{"envFrom", `{envFrom: [{prefix: C_, configMapRef: {name: c}}, {secretRef: {name: s}}], env: [{name: p, value: mine}]}`, `C_k=cv C_x=1 p=mine`},
		{"fields", `env: [{name: A, valueFrom: {fieldRef: {fieldPath: metadata.name}}}, {name: B, valueFrom: {fieldRef: {fieldPath: status.podIP}}}, {name: C, valueFrom: {fieldRef: {fieldPath: "metadata.labels['tier']"}}}, {name: D, valueFrom: {fieldRef: {fieldPath: status.hostIP}}}]`,
			`A=a B=10.42.0.7 C=front D=192.0.2.1`},
		{"resources", `{resources: {limits: {memory: 64Mi}}, env: [{name: A, valueFrom: {resourceFieldRef: {resource: limits.memory}}}, {name: B, valueFrom: {resourceFieldRef: {resource: limits.cpu}}}]}`,
			`A=67108864 B=2`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			pod := podOf(t, "containers: [{name: web}]")
			if err := yaml.Unmarshal([]byte(tt.container), &pod.Spec.Containers[0]); err != nil {
				t.Fatal(err)
			}
			env, err := Env(pod, &pod.Spec.Containers[0], info, src)
			have := text(env)
			if err != nil {
				have = "error: " + err.Error()
			}
			if have != tt.want {
				t.Errorf("have %s\nwant %s", have, tt.want)
			}
		})
	}
}

func text(env []runtime.EnvVar) string {
	var out []string
	for _, e := range env {
		out = append(out, e.Name+"="+e.Value)
	}
	return strings.Join(out, " ")
}

func TestServiceEnv(t *testing.T) {
	service := func(namespace, name, ip string) *v1.Service {
		s := &v1.Service{Spec: v1.ServiceSpec{ClusterIP: ip, Ports: []v1.ServicePort{{Port: 443}}}}
		s.Namespace, s.Name = namespace, name
		return s
	}
	info := PodInfo{Services: []*v1.Service{service("default", "kubernetes", "10.43.0.1"), service("shop", "db", "10.43.0.9"), service("other", "x", "10.43.0.8"), service("shop", "headless", "None")}}
	for links, want := range map[bool]string{true: "10.43.0.1 10.43.0.9 ", false: "10.43.0.1  "} {
		pod := podOf(t, fmt.Sprintf("{containers: [{name: web}], enableServiceLinks: %v}", links))
		env, err := Env(pod, &pod.Spec.Containers[0], info, objects{})
		if err != nil {
			t.Fatal(err)
		}
		values := map[string]string{}
		for _, e := range env {
			values[e.Name] = e.Value
		}
		have := values["KUBERNETES_SERVICE_HOST"] + " " + values["DB_SERVICE_HOST"] + " " + values["X_SERVICE_HOST"]
		if have != want {
			t.Errorf("links %v: %q, want %q", links, have, want)
		}
	}
}

func TestContainer(t *testing.T) {
	for _, tt := range []struct{ name, pod, image, want string }{
		{"plain", `containers: [{name: web, image: i, command: [a, "$(X)"], args: [b], env: [{name: X, value: z}]}]`, "",
			"web_a_shop_u1_2 [a z] [b] shares=2 quota=0 memory=0 oom=1000"},
		{"limits", `containers: [{name: web, image: i, resources: {requests: {cpu: 100m, memory: 64Mi}, limits: {cpu: 500m, memory: 64Mi}}}]`, "",
			"web_a_shop_u1_2 [] [] shares=102 quota=50000 memory=67108864 oom=938"},
		{"guaranteed", `containers: [{name: web, image: i, resources: {requests: {cpu: "1", memory: 64Mi}, limits: {cpu: "1", memory: 64Mi}}}]`, "",
			"web_a_shop_u1_2 [] [] shares=1024 quota=100000 memory=67108864 oom=-997"},
		{"user", `{securityContext: {runAsUser: 1000, fsGroup: 3000, supplementalGroups: [5]}, containers: [{name: web, image: i, securityContext: {runAsGroup: 2000, allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {add: [NET_ADMIN], drop: [ALL]}}}]}`, "",
			"web_a_shop_u1_2 [] [] shares=2 quota=0 memory=0 oom=1000 user=1000:2000 groups=[5 3000] nonew ro add=[NET_ADMIN] drop=[ALL]"},
		{"privileged", `containers: [{name: web, image: i, securityContext: {privileged: true}}]`, "",
			"web_a_shop_u1_2 [] [] shares=2 quota=0 memory=0 oom=1000 privileged unconfined"},
		{"non-root by number", `containers: [{name: web, image: i, securityContext: {runAsNonRoot: true}}]`, "1000",
			"web_a_shop_u1_2 [] [] shares=2 quota=0 memory=0 oom=1000"},
		{"non-root by name", `containers: [{name: web, image: i, securityContext: {runAsNonRoot: true}}]`, "www",
			"error: container has runAsNonRoot and image has non-numeric user (www), cannot verify user is non-root (pod: \"a_shop(u1)\", container: web)"},
		{"non-root but root", `containers: [{name: web, image: i, securityContext: {runAsNonRoot: true, runAsUser: 0}}]`, "",
			"error: container's runAsUser breaks non-root policy (pod: \"a_shop(u1)\", container: web)"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			pod := podOf(t, tt.pod)
			c, err := Container(pod, &pod.Spec.Containers[0], Input{Attempt: 2, MemoryCapacity: 1 << 30, Image: runtime.Image{User: tt.image}}, objects{})
			have := describe(c)
			if err != nil {
				have = "error: " + err.Error()
			}
			if have != tt.want {
				t.Errorf("have %s\nwant %s", have, tt.want)
			}
		})
	}
}

// What a pod's own resources make of it and of its containers.
func TestPodResources(t *testing.T) {
	for _, tt := range []struct{ name, pod, want string }{
		{"of containers", `containers: [{name: a, image: i, resources: {requests: {cpu: 250m, memory: 100Mi}, limits: {cpu: 1, memory: 200Mi}}}, {name: b, image: i, resources: {requests: {cpu: 750m}}}]`,
			"pod shares=1024 quota=0 memory=0; a shares=256 quota=100000 memory=209715200 oom=903; b shares=768 quota=0 memory=0 oom=999"},
		{"best effort", `containers: [{name: a, image: i}]`, "pod shares=2 quota=0 memory=0; a shares=2 quota=0 memory=0 oom=1000"},
		{"of the pod", `{resources: {requests: {cpu: 500m, memory: 512Mi}, limits: {cpu: 2, memory: 768Mi}}, containers: [{name: a, image: i, resources: {requests: {memory: 256Mi}, limits: {cpu: 500m, memory: 256Mi}}}, {name: b, image: i}]}`,
			"pod shares=512 quota=200000 memory=805306368; a shares=512 quota=50000 memory=268435456 oom=625; b shares=2048 quota=200000 memory=805306368 oom=875"},
		{"guaranteed by the pod", `{resources: {requests: {cpu: 1, memory: 64Mi}, limits: {cpu: 1, memory: 64Mi}}, containers: [{name: a, image: i}]}`,
			"pod shares=1024 quota=100000 memory=67108864; a shares=1024 quota=100000 memory=67108864 oom=-997"},
		{"a sidecar lives as long as what it serves", `{initContainers: [{name: s, image: i, restartPolicy: Always, resources: {requests: {memory: 10Mi}}}], containers: [{name: a, image: i, resources: {requests: {memory: 512Mi}}}]}`,
			"pod shares=2 quota=0 memory=0; s shares=2 quota=0 memory=0 oom=500; a shares=2 quota=0 memory=0 oom=500"},
		{"node critical", `{priority: 2000001000, containers: [{name: a, image: i}]}`, "pod shares=2 quota=0 memory=0; a shares=2 quota=0 memory=0 oom=-997"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			pod := podOf(t, tt.pod)
			r := PodResources(pod)
			have := fmt.Sprintf("pod shares=%d quota=%d memory=%d", r.CPUShares, r.CPUQuota, r.MemoryLimit)
			for _, c := range Containers(pod) {
				r := Resources(pod, c)
				have += fmt.Sprintf("; %s shares=%d quota=%d memory=%d oom=%d", c.Name, r.CPUShares, r.CPUQuota, r.MemoryLimit, oomScoreAdj(pod, c, 1<<30))
			}
			if have != tt.want {
				t.Errorf("have %s\nwant %s", have, tt.want)
			}
		})
	}
}

func describe(c runtime.ContainerSpec) string {
	if c.OOMScoreAdj == nil {
		return ""
	}
	out := fmt.Sprintf("%s %v %v shares=%d quota=%d memory=%d oom=%d", c.Name, c.Command, c.Args, c.CPUShares, c.CPUQuota, c.MemoryLimit, *c.OOMScoreAdj)
	add := func(is bool, format string, args ...any) {
		if is {
			out += " " + fmt.Sprintf(format, args...)
		}
	}
	add(c.User != "", "user=%s", c.User)
	add(c.Groups != nil, "groups=%v", c.Groups)
	add(c.NoNewPrivileges, "nonew")
	add(c.ReadOnlyRootfs, "ro")
	add(c.CapAdd != nil, "add=%v", c.CapAdd)
	add(c.CapDrop != nil, "drop=%v", c.CapDrop)
	add(c.Privileged, "privileged")
	add(c.SeccompUnconfined, "unconfined")
	return out
}

func TestNames(t *testing.T) {
	pod := podOf(t, "containers: [{name: web}]")
	id, ok := ParseSandboxName(SandboxName(pod, 3))
	if !ok || id != (Identity{"shop", "a", "u1", 3}) {
		t.Errorf("%+v %v", id, ok)
	}
	if _, ok := ParseSandboxName("some_other_pod"); ok {
		t.Error("a foreign name was understood")
	}
	pod.Spec.Hostname = strings.Repeat("x", 62) + "-tail"
	if h := Hostname(pod); h != strings.Repeat("x", 62) {
		t.Errorf("hostname %q", h)
	}
}
