package devices

import (
	"fmt"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/yaml"
)

func podOf(t *testing.T, uid, spec string) *v1.Pod {
	t.Helper()
	pod := &v1.Pod{}
	pod.UID = types.UID(uid)
	if err := yaml.UnmarshalStrict([]byte(spec), &pod.Spec); err != nil {
		t.Fatal(err)
	}
	return pod
}

// Three devices that every machine has, and one that none has.
func table(t *testing.T) *Table {
	t.Helper()
	out, err := New(map[v1.ResourceName][]string{"example.com/sink": {"/dev/null", "/dev/zero", "/dev/nosuch"}, "example.com/full": {"/dev/full"}})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestPresent(t *testing.T) {
	if have := table(t).Present(); have["example.com/sink"] != 2 || have["example.com/full"] != 1 || len(have) != 2 {
		t.Errorf("present: %v", have)
	}
}

func TestAllocate(t *testing.T) {
	d := table(t)
	for _, tt := range []struct{ uid, spec, want string }{
		{"u1", "containers: [{name: a, resources: {limits: {example.com/sink: 1}}}, {name: b}]", "map[a:[/dev/null]]"},
		{"u2", "containers: [{name: a, resources: {limits: {example.com/sink: 2}}}]", "requested number of devices unavailable for example.com/sink. Requested: 2, Available: 1"},
		{"u2", "containers: [{name: a, resources: {limits: {example.com/full: 1}}}, {name: b, resources: {limits: {example.com/sink: 2}}}]", "requested number of devices unavailable for example.com/sink. Requested: 2, Available: 1"},
		{"u3", "{initContainers: [{name: i, resources: {limits: {example.com/full: 1, cpu: 1}}}], containers: [{name: a, resources: {limits: {example.com/full: 1, example.com/sink: 1}}}]}", "map[a:[/dev/full /dev/zero] i:[/dev/full]]"},
		{"u4", "containers: [{name: a, resources: {limits: {example.com/full: 1}}}]", "requested number of devices unavailable for example.com/full. Requested: 1, Available: 0"},
		{"-u1", "", ""},
		{"-u3", "", ""},
		{"u5", "{initContainers: [{name: s, restartPolicy: Always, resources: {limits: {example.com/full: 1}}}], containers: [{name: a, resources: {limits: {example.com/full: 1}}}]}", "requested number of devices unavailable for example.com/full. Requested: 1, Available: 0"},
		{"u6", "containers: [{name: a, resources: {limits: {example.com/sink: 2, other.com/x: 1}}}]", "map[a:[/dev/null /dev/zero]]"},
	} {
		if uid, release := strings.CutPrefix(tt.uid, "-"); release {
			d.Release(types.UID(uid))
			continue
		}
		given, err := d.Allocate(podOf(t, tt.uid, tt.spec))
		have := fmt.Sprint(given)
		if err != nil {
			have = err.Error()
		}
		if have != tt.want {
			t.Errorf("%s: have %s, want %s", tt.uid, have, tt.want)
		}
	}
}

func TestRestore(t *testing.T) {
	d := table(t)
	d.Restore("u1", map[string][]string{"a": {"/dev/null"}, "b": {"/dev/zero"}})
	spec := "containers: [{name: a, resources: {limits: {example.com/sink: 1}}}]"
	if _, err := d.Allocate(podOf(t, "u2", spec)); err == nil {
		t.Error("a device was given away twice")
	}
	d.Release("u1")
	if _, err := d.Allocate(podOf(t, "u2", spec)); err != nil {
		t.Error(err)
	}
}

func TestNewRefuses(t *testing.T) {
	for want, configured := range map[string]map[v1.ResourceName][]string{
		`"serial" is not the name of a resource such as example.com/serial`:               {"serial": {"/dev/null"}},
		`"hugepages-2Mi" is not the name`:                                                 {"hugepages-2Mi": {"/dev/null"}},
		`"kubernetes.io/x" is not the name`:                                               {"kubernetes.io/x": {"/dev/null"}},
		`"ttyUSB0" is not the path of a device`:                                           {"example.com/a": {"ttyUSB0"}},
		`"/dev/../etc" is not the path of a device`:                                       {"example.com/a": {"/dev/../etc"}},
		`/dev/null is also one of example.com/a: a device is given to one container only`: {"example.com/a": {"/dev/null"}, "example.com/b": {"/dev/null"}},
	} {
		if _, err := New(configured); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v, want %s", configured, err, want)
		}
	}
}
