package volumes

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"

	"github.com/rundigitalplatform/rookery/node/spec"
	"github.com/rundigitalplatform/rookery/runtime"
)

func root(t *testing.T) {
	t.Helper()
	if os.Getuid() == 0 {
		return
	}
	if os.Getenv("ROOKERY_SKIP_ROOT") == "1" {
		t.Skip("mounts need root")
	}
	t.Fatal("mounts need root; set ROOKERY_SKIP_ROOT=1 to go without")
}

// setup makes the volumes of a pod with one container, and its mounts.
func setup(t *testing.T, manifest string) (m *Manager, pod *v1.Pod, mounts func() ([]runtime.Mount, error)) {
	t.Helper()
	m, pod = New(t.TempDir(), &issuer{}), podOf(t, manifest)
	if _, err := m.Setup(t.Context(), pod, spec.PodInfo{}, objects{configMaps: map[string]map[string]string{"c": {"k": "one"}}}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Cleanup(pod.UID); err != nil {
			t.Error(err)
		}
	})
	return m, pod, func() ([]runtime.Mount, error) { return m.Mounts(pod, &pod.Spec.Containers[0], For{}) }
}

// A pod that exchanges its subPath for a link to the host's files, after it was looked
// at and before the engine binds it, gets what was looked at.
func TestSubPathCannotBeExchanged(t *testing.T) {
	root(t)
	m, pod, mounts := setup(t, `{containers: [{name: web, volumeMounts: [{name: v, mountPath: /v, subPath: sub}]}], volumes: [{name: v, emptyDir: {}}]}`)
	list, err := mounts()
	if err != nil {
		t.Fatal(err)
	}
	volume := m.volumeDir(pod.UID, "v")
	if info, err := os.Stat(volume + "/sub"); err != nil || info.Mode().Perm() != 0o777 {
		t.Errorf("the directory that was made: %v %v, want the volume's mode", info, err)
	}
	if err := os.WriteFile(volume+"/sub/mine", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Rename(volume+"/sub", volume+"/away"), os.Symlink("/etc", volume+"/sub")); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(list[0].Source)
	if err != nil || len(entries) != 1 || entries[0].Name() != "mine" {
		t.Errorf("the engine would bind %v %v", entries, err)
	}
	// The next attempt sees the link, and is not started.
	if _, err = mounts(); err == nil || !strings.Contains(err.Error(), `failed to prepare subPath for volumeMount "v" of container "web"`) {
		t.Errorf("with a link out of the volume: %v", err)
	}
	if points, err := mountsBelow(m.PodDir(pod.UID)); err != nil || len(points) != 0 {
		t.Errorf("still mounted: %v %v", points, err)
	}
}

// What was mounted from the host is not removed with the pod.
func TestCleanupLeavesTheHostsFiles(t *testing.T) {
	root(t)
	host := t.TempDir()
	if err := errors.Join(os.MkdirAll(host+"/a b/c", 0o755), os.WriteFile(host+"/a b/c/file", []byte("host"), 0o644)); err != nil {
		t.Fatal(err)
	}
	m, pod, mounts := setup(t, `{containers: [{name: web, volumeMounts: [{name: h, mountPath: /h, subPath: a b}, {name: h, mountPath: /f, subPath: a b/c/file}]}], volumes: [{name: h, hostPath: {path: `+host+`}}]}`)
	for range 2 { // an attempt, and the next
		list, err := mounts()
		if err != nil {
			t.Fatal(err)
		}
		if data, err := os.ReadFile(list[1].Source); err != nil || string(data) != "host" {
			t.Errorf("the file: %q %v", data, err)
		}
	}
	if err := m.Cleanup(pod.UID); err != nil {
		t.Fatal(err)
	}
	if data, err := os.ReadFile(host + "/a b/c/file"); err != nil || string(data) != "host" {
		t.Errorf("after the pod has gone: %q %v", data, err)
	}
	if left, err := m.Pods(); err != nil || len(left) != 0 {
		t.Errorf("left: %v %v", left, err)
	}
}

// What is staged for a container is counted once, as the volume's, and what is the host's is not.
func TestStagedIsNoDiskOfThePod(t *testing.T) {
	root(t)
	host := t.TempDir()
	if err := errors.Join(os.Mkdir(host+"/sub", 0o755), os.WriteFile(host+"/sub/file", make([]byte, 1<<20), 0o644)); err != nil {
		t.Fatal(err)
	}
	m, pod, mounts := setup(t, `{containers: [{name: web, volumeMounts: [{name: h, mountPath: /h, subPath: sub}, {name: h, mountPath: /f, subPath: sub/file}, {name: v, mountPath: /v, subPath: mine}]}], volumes: [{name: h, hostPath: {path: `+host+`}}, {name: v, emptyDir: {}}]}`)
	before, err := m.Disk(t.Context(), pod)
	if err != nil {
		t.Fatal(err)
	}
	list, err := mounts()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(list[2].Source+"/own", make([]byte, 1<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	after, err := m.Disk(t.Context(), pod)
	if err != nil {
		t.Fatal(err)
	}
	if after.Other != before.Other || after.EmptyDirs["v"].Bytes < 1<<20 {
		t.Errorf("the pod's disk was %+v, and is with what is staged %+v", before, after)
	}
}

// A subPath of a projected volume stays what it was when the container started.
func TestSubPathOfAFile(t *testing.T) {
	root(t)
	m, pod, mounts := setup(t, `{containers: [{name: web, volumeMounts: [{name: c, mountPath: /k, subPath: k}]}], volumes: [{name: c, configMap: {name: c}}]}`)
	list, err := mounts()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.Setup(t.Context(), pod, spec.PodInfo{}, objects{configMaps: map[string]map[string]string{"c": {"k": "two"}}}); err != nil {
		t.Fatal(err)
	}
	if data, err := os.ReadFile(list[0].Source); err != nil || string(data) != "one" || !list[0].ReadOnly {
		t.Errorf("%q %v", data, err)
	}
}

func TestRecursiveReadOnly(t *testing.T) {
	root(t)
	host := t.TempDir()
	if err := os.Mkdir(host+"/below", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", host+"/below", "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(host+"/below", unix.MNT_DETACH); err != nil {
			t.Error("the mount of the host went with the pod's: ", err)
		}
	})
	m, pod, mounts := setup(t, `{containers: [{name: web, volumeMounts: [{name: h, mountPath: /h, readOnly: true, recursiveReadOnly: Enabled}, {name: h, mountPath: /i, readOnly: true, recursiveReadOnly: IfPossible}, {name: h, mountPath: /j, readOnly: true}]}], volumes: [{name: h, hostPath: {path: `+host+`}}]}`)
	list, err := mounts()
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []error{unix.EROFS, unix.EROFS, nil} {
		if err := os.WriteFile(filepath.Join(list[i].Source, "below", "x"), nil, 0o644); !errors.Is(err, want) {
			t.Errorf("mount %d: writing below gives %v, want %v", i, err, want)
		}
	}
	if err := m.Cleanup(pod.UID); err != nil {
		t.Fatal(err)
	}
	no := v1.RecursiveReadOnlyEnabled
	if _, err := Recursive(&v1.VolumeMount{ReadOnly: true, RecursiveReadOnly: &no}, false); err == nil {
		t.Error("an old kernel is not told of")
	}
}

func TestEnvFile(t *testing.T) {
	m := New(t.TempDir(), &issuer{})
	pod := podOf(t, `{containers: [{name: web}], volumes: [{name: v, emptyDir: {}}]}`)
	if _, err := m.Setup(t.Context(), pod, spec.PodInfo{}, objects{}); err != nil {
		t.Fatal(err)
	}
	dir := m.volumeDir(pod.UID, "v")
	if err := errors.Join(os.WriteFile(dir+"/env", []byte("# words\nA='one'\n"), 0o644), os.Symlink("/etc/passwd", dir+"/out"), unix.Mkfifo(dir+"/pipe", 0o644)); err != nil {
		t.Fatal(err)
	}
	yes := true
	for _, tt := range []struct {
		ref  v1.FileKeySelector
		want string
	}{
		{v1.FileKeySelector{VolumeName: "v", Path: "env", Key: "A"}, "one"},
		{v1.FileKeySelector{VolumeName: "v", Path: "env", Key: "B"}, ""},
		{v1.FileKeySelector{VolumeName: "v", Path: "none", Key: "A", Optional: &yes}, ""},
		{v1.FileKeySelector{VolumeName: "v", Path: "none", Key: "A"}, "error: couldn't parse env file"},
		{v1.FileKeySelector{VolumeName: "v", Path: "out", Key: "A"}, "error: couldn't parse env file"},
		{v1.FileKeySelector{VolumeName: "v", Path: "pipe", Key: "A"}, "error: couldn't parse env file"},
		{v1.FileKeySelector{VolumeName: "w", Path: "env", Key: "A"}, `error: cannot find the volume "w"`},
	} {
		have, err := m.EnvFile(pod, &tt.ref)
		if err != nil {
			have = "error: " + err.Error()
		}
		if have != tt.want && (tt.want == "" || !strings.HasPrefix(have, tt.want)) {
			t.Errorf("%+v: have %q, want %q", tt.ref, have, tt.want)
		}
	}
}
