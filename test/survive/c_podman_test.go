package survive

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const plain = `
apiVersion: v1
kind: Pod
metadata: {name: %s}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - {name: web, image: "localhost/busybox:1", command: [sleep, "100000"]}
  - {name: side, image: "localhost/busybox:1", command: [sleep, "100000"]}
`

// service is the process of the host's Podman service, as the host sees it.
func service(t *testing.T) string {
	t.Helper()
	return strings.TrimSpace(must(t, "sh", "-c", `for p in $(pidof podman); do grep -qz '^service$' /proc/$p/cmdline && echo $p; done; true`))
}

func killService(t *testing.T) {
	t.Helper()
	must(t, "kill", "-9", service(t))
}

// startService does what the lab's first process did when the host began, with further flags.
func startService(t *testing.T, flags ...string) {
	t.Helper()
	dir := shared.HostDir(host)
	args := strings.Join(append(append(shared.PodmanArgs(host), flags...), "system service -t 0 unix://"+dir+"/podman.sock"), " ")
	must(t, "sh", "-c", "rm -f "+dir+"/podman.sock; cd "+dir+"; setsid podman "+args+" </dev/null >>podman.log 2>&1 &")
}

// waitNode waits until the Node's condition Ready has that status, and returns it.
func waitNode(t *testing.T, want v1.ConditionStatus, within time.Duration) (c v1.NodeCondition) {
	t.Helper()
	took := eventually(t, within, func() (err error) {
		if c, err = condition(v1.NodeReady); err == nil && c.Status != want {
			err = fmt.Errorf("the Node's condition is %+v", c)
		}
		return err
	})
	t.Logf("Ready=%s after %.1fs: %s", want, took.Seconds(), c.Message)
	return c
}

// identities are the ids of a pod's containers and how often each was restarted.
func identities(t *testing.T, name string) map[string]string {
	t.Helper()
	p, err := pod(name)
	if err != nil {
		t.Fatal(err)
	}
	ids := map[string]string{}
	for _, s := range p.Status.ContainerStatuses {
		ids[s.Name] = fmt.Sprint(s.ContainerID, " ", s.RestartCount)
	}
	return ids
}

func same(t *testing.T, name string, before map[string]string) {
	t.Helper()
	for c, id := range identities(t, name) {
		if id != before[c] {
			t.Errorf("container %s of %s was %s, is %s", c, name, before[c], id)
		}
	}
}

// restarted waits until a container that is ended by hand was started again.
func restarted(t *testing.T, name, c string, end func(id string)) {
	t.Helper()
	before := identities(t, name)[c]
	end(strings.TrimPrefix(strings.Fields(before)[0], "podman://"))
	took := eventually(t, 2*time.Minute, func() error {
		p, err := pod(name)
		if err != nil {
			return err
		}
		if now := identities(t, name)[c]; now == before {
			return fmt.Errorf("container %s is still %s", c, now)
		}
		return ready(p)
	})
	t.Logf("container %s of %s runs again after %.1fs", c, name, took.Seconds())
}

func podmanMust(t *testing.T, line string) {
	t.Helper()
	if _, err := podman(t, line); err != nil {
		t.Fatal(err)
	}
}

// checked has `rookery check` name this machine's Podman and what that version lacks.
func checked(t *testing.T) {
	t.Helper()
	out := must(t, "rookery", "check")
	version, err := podman(t, "version --format {{.Client.Version}}")
	if err != nil {
		t.Fatal(err)
	}
	version = strings.TrimSpace(version)
	if !strings.Contains(out, version+" with ") {
		t.Errorf("check does not name Podman %s:\n%s", version, out)
	}
	if lacks := strings.Contains(out, "before 5.2 there is no `podman system check`"); lacks != strings.HasPrefix(version, "4.") {
		t.Errorf("check says of Podman %s:\n%s", version, out)
	}
}

// A Podman service that is killed and started again: the peer says so, nothing of
// what runs is touched, and events are heard again.
func TestPodmanServiceRestarts(t *testing.T) {
	checked(t)
	create(t, fmt.Sprintf(plain, "service"))
	waitReady(t, patience, "service")
	before := identities(t, "service")
	killService(t)
	if c := waitNode(t, v1.ConditionFalse, 20*time.Second); c.Reason != "ContainerEngineUnavailable" || !strings.Contains(c.Message, "systemctl") {
		t.Errorf("the condition does not help: %+v", c)
	}
	if out, err := try(t, "rookery", "status"); err != nil || !strings.Contains(out, "Podman on this peer does not answer") {
		t.Errorf("status does not say it: %s, %v", out, err)
	}
	create(t, fmt.Sprintf(plain, "meanwhile"))
	time.Sleep(8 * time.Second) // longer than pods stay on a peer that is gone
	startService(t)
	waitNode(t, v1.ConditionTrue, 30*time.Second)
	waitReady(t, patience, "service", "meanwhile")
	same(t, "service", before)
	restarted(t, "service", "web", func(id string) { podmanMust(t, "kill -s KILL "+id) })
	clear(t)
}

// A container, then the whole pod, removed behind our back.
func TestRemovedBehindOurBack(t *testing.T) {
	create(t, fmt.Sprintf(plain, "removed"))
	waitReady(t, patience, "removed")
	side := identities(t, "removed")["side"]
	restarted(t, "removed", "web", func(id string) { podmanMust(t, "rm -f -t 0 "+id) })
	if now := identities(t, "removed")["side"]; now != side {
		t.Errorf("the other container was %s, is %s", side, now)
	}
	restarted(t, "removed", "side", func(string) { podmanMust(t, "pod rm -f -t 0 -a") })
	waitReady(t, patience, "removed")
	running := containers(t, "removed")
	if len(running["web"]) != 1 || len(running["side"]) != 1 {
		t.Errorf("containers are %v", running)
	}
	clear(t)
}

// A Podman that hangs: the peer says so, what runs is reached as before, and what was
// asked for meanwhile is done afterwards.
func TestPodmanHangs(t *testing.T) {
	create(t, fmt.Sprintf(plain, "before"))
	waitReady(t, patience, "before")
	ids := identities(t, "before")
	p := service(t)
	must(t, "kill", "-STOP", p)
	defer func() {
		if _, err := try(t, "kill", "-CONT", p); err != nil {
			t.Error(err)
		}
	}()
	create(t, fmt.Sprintf(plain, "during"))
	if c := waitNode(t, v1.ConditionFalse, patience); !strings.Contains(c.Message, "systemctl restart podman.service") {
		t.Errorf("the condition does not help: %+v", c)
	}
	if out, err := try(t, "rookery", "status"); err != nil || !strings.Contains(out, "Podman on this peer does not answer") {
		t.Errorf("status does not say it: %s, %v", out, err)
	}
	if b, err := pod("before"); err != nil || ready(b) != nil {
		t.Errorf("the pod that runs is not Ready any more: %v", err)
	}
	must(t, "kill", "-CONT", p)
	waitNode(t, v1.ConditionTrue, patience)
	waitReady(t, 2*time.Minute, "before", "during")
	same(t, "before", ids)
	if all := containers(t, "during"); len(all["web"]) != 1 || len(all["side"]) != 1 {
		t.Errorf("containers are %v", all)
	}
	clear(t)
}

// hangs is an OCI runtime that hangs when it starts a container with HANGS in its environment,
// as one does whose storage does not answer, for as long as the file "hang" is there.
const hangs = `#!/bin/sh
for id; do :; done
case " $* " in
*" start "*)
	if grep -q '"HANGS=' %[1]s/storage/*-containers/$id/userdata/config.json; then
		touch %[1]s/hangs
		while [ -e %[1]s/hang ]; do sleep 0.1; done
	fi ;;
esac
exec runc "$@"
`

const hanging = `
apiVersion: v1
kind: Pod
metadata: {name: hung}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - {name: web, image: "localhost/busybox:1", command: [sleep, "100000"], env: [{name: HANGS, value: "1"}]}
`

// answers checks that logs and exec of a pod work.
func answers(t *testing.T, name string) {
	t.Helper()
	must(t, "rookery", "logs", name, "-c", "web")
	if out := must(t, "rookery", "exec", name, "-c", "web", "--", "echo", "here"); strings.TrimSpace(out) != "here" {
		t.Errorf("exec in %s says %q", name, out)
	}
}

// A container whose OCI runtime hangs, for which Podman holds its lock and with it every
// list of all containers: its pod and the status say so, and no other pod is held up, not
// even by a daemon that starts meanwhile.
func TestOneContainerHangs(t *testing.T) {
	dir := shared.HostDir(host)
	if err := os.WriteFile(dir+"/hangs.sh", fmt.Appendf(nil, hangs, dir), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir+"/hang", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	release := func() {
		if err := os.Remove(dir + "/hang"); err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Error(err)
		}
	}
	defer release()
	killService(t)
	startService(t, "--runtime", dir+"/hangs.sh")
	defer func() {
		killService(t)
		startService(t)
	}()
	create(t, fmt.Sprintf(plain, "beside"))
	waitReady(t, patience, "beside")
	waitNode(t, v1.ConditionTrue, patience)
	create(t, hanging)
	eventually(t, patience, func() error { _, err := os.Stat(dir + "/hangs"); return err })
	create(t, fmt.Sprintf(plain, "during"))
	waitReady(t, patience, "during")
	restarted(t, "beside", "web", func(id string) { podmanMust(t, "kill -s KILL "+id) })
	answers(t, "beside")
	isReady, lost := true, 0
	took := eventually(t, 8*time.Minute, func() error {
		if c, err := condition(v1.NodeReady); err == nil {
			now := c.Status == v1.ConditionTrue
			if isReady && !now {
				lost++
				t.Logf("the Node is not Ready: %+v", c)
			}
			isReady = now
		}
		out, err := try(t, "rookery", "status")
		if err == nil && !strings.Contains(out, "does not answer in time about default/hung") {
			err = fmt.Errorf("status does not say it: %s", out)
		}
		return err
	})
	t.Logf("status names the pod after %.1fs", took.Seconds())
	var list *v1.EventList
	eventually(t, patience, func() (err error) { // it is sent when the status is known, and written after that
		list, err = api.CoreV1().Events(v1.NamespaceDefault).List(t.Context(), metav1.ListOptions{FieldSelector: "involvedObject.name=hung,type=Warning"})
		if err == nil && len(list.Items) == 0 {
			err = errors.New("no event says that the pod hangs")
		}
		return err
	})
	for _, e := range list.Items {
		t.Logf("%s: %s", e.Reason, e.Message)
		if !strings.Contains(e.Message, "podman did not answer in time") || !strings.Contains(e.Message, "deadline exceeded") {
			t.Errorf("the event does not name the deadline: %s", e.Message)
		}
	}
	if out := must(t, "rookery", "check"); !strings.Contains(out, "answers, but does not say what it is") {
		t.Errorf("check does not say it: %s", out)
	}
	// Podman answers, if slowly on a busy machine: once is no sign that the Node hangs with the pod.
	waitNode(t, v1.ConditionTrue, patience)
	if lost > 1 {
		t.Errorf("the Node was not Ready %d times", lost)
	}
	restarted(t, "beside", "web", func(id string) { podmanMust(t, "kill -s KILL "+id) })

	if err := errors.Join(shared.Kill(context.Background(), host), shared.Start(context.Background(), host)); err != nil {
		t.Fatal(err)
	}
	serving(t)
	create(t, fmt.Sprintf(plain, "after"))
	waitReady(t, 3*time.Minute, "after")
	restarted(t, "beside", "web", func(id string) { podmanMust(t, "kill -s KILL "+id) })
	answers(t, "during")
	waitNode(t, v1.ConditionTrue, patience)
	release()
	waitReady(t, 8*time.Minute, "hung", "beside", "during", "after")
	if all := containers(t, "hung"); len(all["web"]) != 1 {
		t.Errorf("containers are %v", all)
	}
	clear(t)
}
