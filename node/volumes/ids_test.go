package volumes

import (
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"k8s.io/apimachinery/pkg/types"

	"github.com/rundigitalplatform/rookery/node/spec"
)

func TestIDsAreOfOnePodOnly(t *testing.T) {
	m := New(t.TempDir(), &issuer{})
	first := func(uid string) uint32 {
		t.Helper()
		r, err := m.IDs(types.UID(uid))
		if err != nil || r.Size != 65536 || r.First%65536 != 0 || r.First == 0 {
			t.Fatalf("%+v %v", r, err)
		}
		return r.First
	}
	a, b := first("a"), first("b")
	m = New(m.dir, &issuer{}) // another daemon
	if first("a") != a || first("b") != b || a == b {
		t.Errorf("a has %d, b has %d", a, b)
	}
	if err := m.Cleanup("a"); err != nil {
		t.Fatal(err)
	}
	if first("c") != a {
		t.Error("what is free again is not given out")
	}
}

// A pod with users of its own finds its files owned by them, and its root is nobody outside.
func TestFilesBelongToThePodsUsers(t *testing.T) {
	root(t)
	m := New(t.TempDir(), &issuer{})
	pod := podOf(t, `{hostUsers: false, containers: [{name: web, terminationMessagePath: /dev/termination-log, volumeMounts: [{name: v, mountPath: /v}, {name: v, mountPath: /w, subPath: sub}]}], volumes: [{name: v, emptyDir: {}}]}`)
	if _, err := m.Setup(t.Context(), pod, spec.PodInfo{}, objects{}); err != nil {
		t.Fatal(err)
	}
	ids, err := m.IDs(pod.UID)
	if err != nil {
		t.Fatal(err)
	}
	sleep := exec.Command("sleep", "60")
	mapping := []syscall.SysProcIDMap{{HostID: int(ids.First), Size: int(ids.Size)}}
	sleep.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER, UidMappings: mapping, GidMappings: mapping}
	if err := sleep.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = sleep.Wait() }()
	defer sleep.Process.Kill()
	list, err := m.Mounts(pod, &pod.Spec.Containers[0], For{Users: fmt.Sprintf("/proc/%d/ns/user", sleep.Process.Pid)})
	if err != nil {
		t.Fatal(err)
	}
	for _, mount := range list {
		info, err := os.Stat(mount.Source)
		if err != nil {
			t.Fatal(err)
		}
		if owner := info.Sys().(*syscall.Stat_t); owner.Uid != ids.First || owner.Gid != ids.First {
			t.Errorf("%s is of %d:%d, want %d, the pod's root", mount.Target, owner.Uid, owner.Gid, ids.First)
		}
	}
	if len(list) != 3 {
		t.Errorf("%d mounts", len(list))
	}
	if info, err := os.Stat(m.volumeDir(pod.UID, "v")); err != nil || info.Sys().(*syscall.Stat_t).Uid != 0 {
		t.Errorf("on disk: %v %v", info, err)
	}
	if err := m.Cleanup(pod.UID); err != nil {
		t.Error(err)
	}
}
