package survive

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// onSmallDisk moves a directory of the host onto a file system of that size, while the
// daemon does not run, and back at the end of the test.
func onSmallDisk(t *testing.T, dir, size string) {
	t.Helper()
	move(t, fmt.Sprintf("mkdir -p %[1]s; rm -rf %[1]s.disk; cp -a %[1]s %[1]s.disk; mount -t tmpfs -o size=%[2]s tmpfs %[1]s; cp -a %[1]s.disk/. %[1]s/", dir, size))
	t.Cleanup(func() {
		move(t, fmt.Sprintf("rm -rf %[1]s.disk %[1]s/filler; cp -a %[1]s %[1]s.disk; umount -l %[1]s; rm -rf %[1]s; mv %[1]s.disk %[1]s", dir))
	})
}

// move runs a script while the daemon does not run.
func move(t *testing.T, script string) {
	t.Helper()
	if err := shared.Kill(context.Background(), host); err != nil {
		t.Fatal(err)
	}
	must(t, "sh", "-ec", script)
	if err := shared.Start(context.Background(), host); err != nil {
		t.Fatal(err)
	}
	serving(t)
}

// fill takes all space that is left in a directory.
func fill(t *testing.T, dir string) {
	t.Helper()
	out, err := try(t, "dd", "if=/dev/zero", "of="+dir+"/filler", "bs=4k")
	if err == nil || !strings.Contains(out, "No space left") {
		t.Fatalf("filling the disk: %v: %s", err, out)
	}
}

// With a full disk under the cluster's state nothing can be changed and everybody is
// told why; what runs runs on, and with space all is as before.
func TestFullDiskUnderTheState(t *testing.T) {
	dir := shared.HostDir(host) + "/rookery"
	onSmallDisk(t, dir, "256m")
	create(t, fmt.Sprintf(plain, "full"))
	waitReady(t, patience, "full")
	ids := identities(t, "full")
	fill(t, dir)
	var failure error
	eventually(t, patience, func() error {
		for range 50 { // preallocated space takes some
			_, err := api.CoreV1().ConfigMaps(v1.NamespaceDefault).Create(t.Context(), &v1.ConfigMap{
				ObjectMeta: metav1.ObjectMeta{GenerateName: "full-"}, Data: map[string]string{"data": strings.Repeat("x", 100<<10)},
			}, metav1.CreateOptions{})
			if err != nil {
				failure = err
				return nil
			}
		}
		return fmt.Errorf("writes succeed on a full disk")
	})
	t.Logf("a write fails with: %v", failure)
	if !strings.Contains(failure.Error(), "no space left on device") {
		t.Errorf("the error does not say why")
	}
	if _, err := pod("full"); err != nil {
		t.Errorf("reading does not work: %v", err)
	}
	if out, err := try(t, "rookery", "status"); err != nil || !strings.Contains(out, "space") {
		t.Errorf("status does not say it: %s, %v", out, err)
	}
	if all := containers(t, "full"); len(all["web"]) != 1 || all["web"][0].State != "running" {
		t.Errorf("containers are %v", all)
	}
	must(t, "rm", dir+"/filler")
	took := eventually(t, patience, func() error {
		_, err := api.CoreV1().ConfigMaps(v1.NamespaceDefault).Create(t.Context(), &v1.ConfigMap{ObjectMeta: metav1.ObjectMeta{GenerateName: "full-"}}, metav1.CreateOptions{})
		return err
	})
	t.Logf("writes are back %.1fs after space was", took.Seconds())
	waitReady(t, patience, "full")
	same(t, "full", ids)
	clear(t)
}

// With a full disk under the pods' directories a new pod waits and says why, and
// starts when there is space.
func TestFullDiskUnderThePods(t *testing.T) {
	dir := shared.HostDir(host) + "/rookery/pods"
	onSmallDisk(t, dir, "1m")
	create(t, fmt.Sprintf(plain, "roomy"))
	waitReady(t, patience, "roomy")
	ids := identities(t, "roomy")
	fill(t, dir)
	create(t, fmt.Sprintf(plain, "cramped"))
	eventually(t, 30*time.Second, func() error {
		list, err := api.CoreV1().Events(v1.NamespaceDefault).List(t.Context(), metav1.ListOptions{FieldSelector: "involvedObject.name=cramped"})
		if err != nil {
			return err
		}
		var all []string
		for _, e := range list.Items {
			if e.Type == v1.EventTypeWarning && strings.Contains(e.Message, "no space left on device") {
				t.Logf("%s: %s", e.Reason, e.Message)
				return nil
			}
			all = append(all, e.Reason+": "+e.Message)
		}
		return fmt.Errorf("no event says why: %q", all)
	})
	must(t, "rm", dir+"/filler")
	waitReady(t, patience, "cramped", "roomy")
	same(t, "roomy", ids)
	clear(t)
}
