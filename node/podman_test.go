package node

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	"sigs.k8s.io/yaml"

	"github.com/rundigitalplatform/rookery/runtime/podman"
	"github.com/rundigitalplatform/rookery/test/image"
)

// podmanConf lets Podman run where CAP_SYS_RESOURCE is missing and cgroups are hybrid.
const podmanConf = `[containers]
default_ulimits = ["nofile=16384:16384","nproc=32768:32768"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
`

// startPodman runs a Podman service with storage of its own until the test ends.
func startPodman(t *testing.T) (socket string) { return startPodmanWith(t, "", 0) }

// startPodmanWith has a registries.conf and, unless it is 0, so many bytes of storage.
func startPodmanWith(t *testing.T, registries string, storage int) (socket string) {
	if os.Getenv("ROOKERY_SKIP_PODMAN") == "1" {
		t.Skip("ROOKERY_SKIP_PODMAN=1")
	}
	if os.Getuid() != 0 {
		t.Fatal("run as root, or set ROOKERY_SKIP_PODMAN=1")
	}
	// conmon leaves its parent; here it becomes this process's child.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "rk-node-") // short: unix sockets allow 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir+"/containers.conf", []byte(podmanConf), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir+"/registries.conf", []byte(registries), 0o644); err != nil {
		t.Fatal(err)
	}
	if storage > 0 {
		if err := os.Mkdir(dir+"/root", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount("tmpfs", dir+"/root", "tmpfs", 0, fmt.Sprintf("size=%d", storage)); err != nil {
			t.Fatal(err)
		}
	}
	command := func(args ...string) *exec.Cmd {
		cmd := exec.Command("podman", append([]string{"--root", dir + "/root", "--runroot", dir + "/run", "--tmpdir", dir + "/tmp", "--network-config-dir", dir + "/net"}, args...)...)
		cmd.Env = append(os.Environ(), "CONTAINERS_CONF="+dir+"/containers.conf", "CONTAINERS_REGISTRIES_CONF="+dir+"/registries.conf")
		return cmd
	}
	socket = dir + "/podman.sock"
	service := command("system", "service", "-t", "0", "unix://"+socket)
	if err := service.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if out, err := command("pod", "rm", "--all", "--force", "--time", "0").CombinedOutput(); err != nil {
			t.Errorf("remove pods: %v: %s", err, out)
		}
		if err := service.Process.Signal(syscall.SIGTERM); err != nil {
			t.Error(err)
		}
		_ = service.Wait() // it says that it was terminated
		mounts, err := os.ReadFile("/proc/self/mountinfo")
		if err != nil {
			t.Error(err)
		}
		lines := strings.Split(strings.TrimSpace(string(mounts)), "\n")
		for i := len(lines) - 1; i >= 0; i-- {
			if point := strings.Fields(lines[i])[4]; strings.HasPrefix(point, dir+"/") {
				if err := unix.Unmount(point, unix.MNT_DETACH); err != nil {
					t.Errorf("unmount %s: %v", point, err)
				}
			}
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
		for pid := 1; pid > 0; { // bury conmon
			if pid, err = unix.Wait4(-1, nil, unix.WNOHANG, nil); err != nil {
				break
			}
		}
	})
	eventually(t, 20*time.Second, "podman listens", func() bool { _, err := os.Stat(socket); return err == nil })
	return socket
}

func eventually(t *testing.T, limit time.Duration, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(limit); !is(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %s: %s", limit, what)
		}
	}
}

const busyboxPod = `
metadata: {name: a, namespace: default, uid: 11111111-2222-3333-4444-555555555555}
spec:
  nodeName: p1
  restartPolicy: Always
  terminationGracePeriodSeconds: 5
  hostname: alpha
  securityContext: {fsGroup: 4000}
  initContainers:
  - name: prepare
    image: localhost/busybox:1
    command: [sh, -c, "echo prepared > /data/file"]
    volumeMounts: [{name: data, mountPath: /data}]
  - name: side
    image: localhost/busybox:1
    restartPolicy: Always
    command: [sh, -c, "trap 'exit 0' TERM; while :; do sleep 0.2; done"]
  containers:
  - name: web
    image: localhost/busybox:1
    command: [sh, -c, "echo hello $(WHO); cat /data/file /conf/key; hostname; cat /etc/hosts /etc/resolv.conf; trap 'exit 0' TERM; while :; do sleep 0.2; done"]
    env:
    - {name: WHO, valueFrom: {secretKeyRef: {name: s, key: who}}}
    resources: {limits: {memory: 64Mi, cpu: 500m}}
    readinessProbe: {exec: {command: [test, -f, /data/file]}, periodSeconds: 1, timeoutSeconds: 5, failureThreshold: 3, successThreshold: 1}
    terminationMessagePath: /dev/termination-log
    volumeMounts:
    - {name: data, mountPath: /data}
    - {name: conf, mountPath: /conf}
    - {name: mem, mountPath: /mem}
    - {name: conf, mountPath: /one, subPath: key}
  volumes:
  - {name: data, emptyDir: {}}
  - {name: mem, emptyDir: {medium: Memory, sizeLimit: 1Mi}}
  - {name: conf, configMap: {name: c}}
`

func TestOnPodman(t *testing.T) {
	socket := startPodman(t)
	rt, err := podman.New(podman.Config{Socket: socket, Owner: "node-test"})
	if err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatalf("%v: install busybox-static, or set ROOKERY_SKIP_PODMAN=1", err)
	}
	files := []image.File{{Path: "/bin/busybox", Mode: 0o755, Data: busybox}, {Path: "/etc", Dir: true}, {Path: "/tmp", Dir: true, Mode: 0o1777}}
	for _, name := range []string{"sh", "echo", "cat", "sleep", "test", "hostname", "tr"} {
		files = append(files, image.File{Path: "/bin/" + name, Mode: 0o755, Data: busybox})
	}
	var archive bytes.Buffer
	if err := image.Write(&archive, image.Spec{Names: []string{"localhost/busybox:1"}, Files: files}); err != nil {
		t.Fatal(err)
	}
	if _, err := rt.LoadImage(ctx, &archive); err != nil {
		t.Fatal(err)
	}
	client := fake.NewClientset(
		&v1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "s", Namespace: "default"}, Data: map[string][]byte{"who": []byte("world")}},
		&v1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "c", Namespace: "default"}, Data: map[string]string{"key": "configured\n"}},
	)
	dir := t.TempDir()
	network := &fakeNetwork{attached: map[string]netip.Addr{}}
	var agent *Agent
	start := func() (stop func()) {
		run, cancel := context.WithCancel(ctx)
		factory := informers.NewSharedInformerFactory(client, 0)
		var err error
		agent, err = New(Config{
			Name: "p1", Dir: dir, Client: client, Informers: factory, Runtime: rt, Network: network,
			ClusterDNS: netip.MustParseAddr("10.43.0.10"), Version: "v1.37.2+rookery",
			Logger: slog.New(slog.NewTextHandler(t.Output(), nil)),
		})
		if err != nil {
			t.Fatal(err)
		}
		factory.Start(run.Done())
		done := make(chan error, 1)
		go func() { done <- agent.Run(run) }()
		return func() {
			cancel()
			if err := <-done; err != nil {
				t.Errorf("run: %v", err)
			}
			factory.Shutdown()
		}
	}
	stop := start()
	pod := &v1.Pod{}
	if err := yaml.UnmarshalStrict([]byte(busyboxPod), pod); err != nil {
		t.Fatal(err)
	}
	pods := client.CoreV1().Pods("default")
	if pod, err = pods.Create(ctx, pod, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	get := func() *v1.Pod {
		pod, err := pods.Get(ctx, "a", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return pod
	}
	const running = "Running ready=True prepare:Completed(0) side:running web:running"
	began := time.Now()
	end := time.Now().Add(2 * time.Minute)
	for summary(get()) != running {
		if time.Now().After(end) {
			t.Fatalf("pod is %s: %+v", summary(get()), get().Status.ContainerStatuses)
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Logf("ready after %s", time.Since(began))
	id := get().Status.ContainerStatuses[0].ContainerID

	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { agent.Handler().ServeHTTP(w, r) }))
	defer server.Close()
	answer, err := http.Get(server.URL + "/containerLogs/default/a/web?tailLines=100")
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(answer.Body)
	answer.Body.Close()
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"hello world", "prepared", "configured", "alpha", "10.42.0.1\talpha", "nameserver 10.43.0.10", "ndots:5"} {
		if !strings.Contains(string(text), want) {
			t.Errorf("log has no %q:\n%s", want, text)
		}
	}

	out := remote(t, server.URL+"/exec/default/a/web", "in", "sh", "-c", "cat /one; tr a-z A-Z; exit 3")
	if out != "configured\nIN|command terminated with exit code 3" {
		t.Errorf("exec: %q", out)
	}

	stop()
	stop = start()
	eventually(t, 2*time.Minute, "adopted", func() bool { return agent.worker(pod.UID) != nil && agent.isListed() })
	time.Sleep(500 * time.Millisecond)
	if have := get(); summary(have) != running || have.Status.ContainerStatuses[0].ContainerID != id {
		t.Errorf("after a restart of the daemon: %s %s", summary(have), have.Status.ContainerStatuses[0].ContainerID)
	}

	// A container that dies is restarted.
	list, err := rt.List(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range list[0].Containers {
		if "podman://"+c.ID == id {
			if err := syscall.Kill(c.PID, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
		}
	}
	eventually(t, 2*time.Minute, "restarted", func() bool { return summary(get()) == running+"*1" })
	if last := get().Status.ContainerStatuses[0].LastTerminationState.Terminated; last == nil || last.ExitCode != 137 {
		t.Errorf("last state: %+v", last)
	}

	grace := int64(5)
	at := metav1.NewTime(time.Now().Add(5 * time.Second))
	last := get()
	last.DeletionTimestamp, last.DeletionGracePeriodSeconds = &at, &grace
	if err := client.Tracker().Update(v1.SchemeGroupVersion.WithResource("pods"), last, "default"); err != nil {
		t.Fatal(err)
	}
	began = time.Now()
	eventually(t, 2*time.Minute, "gone", func() bool {
		_, err := pods.Get(ctx, "a", metav1.GetOptions{})
		return err != nil
	})
	t.Logf("gone after %s", time.Since(began))
	if list, err := rt.List(ctx, nil); err != nil || len(list) != 0 {
		t.Errorf("left: %+v %v", list, err)
	}
	if left, err := agent.volumes.Pods(); err != nil || len(left) != 0 {
		t.Errorf("files left: %v %v", left, err)
	}
	stop()
}

// remote executes a command by SPDY as kubectl does and returns output|error.
func remote(t *testing.T, base, stdin string, command ...string) string {
	u, err := url.Parse(base)
	if err != nil {
		t.Fatal(err)
	}
	q := url.Values{"input": {"1"}, "output": {"1"}, "error": {"1"}, "command": command}
	u.RawQuery = q.Encode()
	executor, err := remotecommand.NewSPDYExecutor(&rest.Config{Host: u.Host}, "POST", u)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	var out, errOut bytes.Buffer
	err = executor.StreamWithContext(ctx, remotecommand.StreamOptions{Stdin: strings.NewReader(stdin), Stdout: &out, Stderr: &errOut})
	message := ""
	if err != nil {
		message = err.Error()
	}
	return out.String() + errOut.String() + "|" + message
}
