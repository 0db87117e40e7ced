package survive

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/rundigitalplatform/rookery/test/lab"
)

// many is as many pods as a Kubernetes node takes.
const many = 110

const oneOfMany = `
apiVersion: v1
kind: Pod
metadata: {name: many-%d}
spec:
  terminationGracePeriodSeconds: 5
  containers:
  - name: web
    image: localhost/busybox:1
    command: [sh, -c, "trap 'exit 0' TERM; while :; do sleep 100000 & wait; done"]
    volumeMounts: [{name: memory, mountPath: /memory}, {name: disk, mountPath: /disk}]
  volumes: [{name: memory, emptyDir: {medium: Memory}}, {name: disk, emptyDir: {}}]
`

// oneOfTen has in addition what a peer keeps something of for a pod beside its containers.
const oneOfTen = `
apiVersion: v1
kind: Pod
metadata: {name: many-%d}
spec:
  terminationGracePeriodSeconds: 5
  hostUsers: false
  containers:
  - name: web
    image: localhost/busybox:1
    command: [sh, -c, "test -s /conf/key && test -s /key && test -x /image/bin/busybox && touch /part/file && trap 'exit 0' TERM && while :; do sleep 100000 & wait; done"]
    ports: [{containerPort: 80, hostPort: %d}]
    volumeMounts:
    - {name: memory, mountPath: /memory}
    - {name: disk, mountPath: /disk}
    - {name: disk, mountPath: /part, subPath: made/here}
    - {name: conf, mountPath: /conf}
    - {name: conf, mountPath: /key, subPath: key}
    - {name: image, mountPath: /image}
  volumes: [{name: memory, emptyDir: {medium: Memory}}, {name: disk, emptyDir: {}}, {name: conf, configMap: {name: many}}, {name: image, image: {reference: "localhost/busybox:1"}}]
`

// nthOfMany is the manifest of a pod; every tenth has more.
func nthOfMany(i int) string {
	if i%10 == 0 {
		return fmt.Sprintf(oneOfTen, i, 20000+i)
	}
	return fmt.Sprintf(oneOfMany, i)
}

// As many pods as a node takes, all Ready; then the daemon idles; then they are
// deleted, and nothing of them is left on the machine.
func TestManyPods(t *testing.T) {
	conf := &v1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "many"}, Data: map[string]string{"key": "value"}}
	if _, err := api.CoreV1().ConfigMaps(v1.NamespaceDefault).Create(t.Context(), conf, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	create(t, nthOfMany(0)) // what the first pod leaves for good is no trace of the others
	waitReady(t, patience, "many-0")
	clear(t)
	before := traces(t)

	began := time.Now()
	for i := range many {
		create(t, nthOfMany(i))
	}
	allReady(t, 15*time.Minute)
	t.Logf("%d pods Ready after %.1fs", many, time.Since(began).Seconds())
	if during := traces(t); len(during["interfaces"]) < many || len(during["mounts"]) < many || len(during["control groups"]) < many || len(during["files"]) < many || len(during["processes"]) < many {
		t.Fatalf("the traces do not show the pods: %d interfaces, %d mounts, %d control groups, %d files, %d processes", len(during["interfaces"]),
			len(during["mounts"]), len(during["control groups"]), len(during["files"]), len(during["processes"]))
	}

	time.Sleep(lab.CalmDown)
	const watched = 30 * time.Second
	pid := daemon(t)
	first := spent(t, pid)
	if path := os.Getenv("ROOKERY_PROFILE"); path != "" {
		profile(t, path, watched)
	} else {
		time.Sleep(watched)
	}
	second := spent(t, pid)
	cpu, written := 100*(second.CPU-first.CPU).Seconds()/watched.Seconds(), second.Written-first.Written
	t.Logf("idle with %d pods: %.2f %% of a core, %d bytes written, %d MB resident", many, cpu, written, second.Resident>>20)
	if cpu > 50 || written > 64<<10 { // the goals, 1 % and 0, are measured by `make bench`: on a machine whose host is busy all takes several times as long
		t.Errorf("the daemon is not idle: %.2f %% of a core, %d bytes written in %s", cpu, written, watched)
	}

	began = time.Now()
	clear(t)
	t.Logf("%d pods deleted after %.1fs", many, time.Since(began).Seconds())
	eventually(t, 30*time.Second, func() error { return left(before, traces(t)) })
}

// profile writes where the daemon spends its time.
func profile(t *testing.T, path string, length time.Duration) {
	t.Helper()
	data, err := api.Discovery().RESTClient().Get().AbsPath("/rookery/v1/debug/pprof/profile").
		Param("seconds", strconv.Itoa(int(length.Seconds()))).Timeout(length + 10*time.Second).DoRaw(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func allReady(t *testing.T, within time.Duration) {
	t.Helper()
	eventually(t, within, func() error {
		list, err := api.CoreV1().Pods(v1.NamespaceDefault).List(t.Context(), metav1.ListOptions{ResourceVersion: "0"})
		if err != nil {
			return err
		}
		for i := range list.Items {
			if err := ready(&list.Items[i]); err != nil {
				return err
			}
		}
		return nil
	})
}

// traces is what pods leave on a machine, by kind.
func traces(t *testing.T) map[string][]string {
	t.Helper()
	dir := shared.HostDir(host)
	lines := func(argv ...string) []string {
		list := strings.FieldsFunc(must(t, argv...), func(r rune) bool { return r == '\n' }) // none: no entry, not an empty one
		slices.Sort(list)
		return list
	}
	podmans := func(line string) []string {
		out, err := podman(t, line)
		if err != nil {
			t.Fatal(err)
		}
		return strings.Fields(out)
	}
	all := map[string][]string{
		"pods":           podmans("pod ps -q --no-trunc"),
		"containers":     podmans("ps -aq --no-trunc"),
		"interfaces":     lines("sh", "-c", `ip -o link | sed 's/^[0-9]*: \([^:@]*\).*/\1/'`),
		"routes":         lines("ip", "route", "show", "table", "all"),
		"packet rules":   lines("sh", "-c", `nft list ruleset | sed 's/counter packets [0-9]* bytes [0-9]*//'`),
		"mounts":         lines("sh", "-c", `cut -d' ' -f5 /proc/self/mountinfo`),
		"control groups": lines("sh", "-c", `find /sys/fs/cgroup -type d -path '*libpod*'`),
		"processes":      lines("sh", "-c", `for p in /proc/[0-9]*; do tr '\0' ' ' <$p/cmdline 2>/dev/null | grep -a -e conmon -e catatonit -e many- -e 'sleep 100000'; done; true`),
		// The log of what was wanted grows, and so do the logs of programs; directories of caches come and go.
		"files": lines("sh", "-c", `find `+dir+` /dev/shm -path '*/rookery/raft' -prune -o -path '*/merged' -prune -o -print`),
	}
	return all
}

// left is what there is now and was not there before.
func left(before, now map[string][]string) error {
	for kind, list := range now {
		for _, entry := range list {
			if !slices.Contains(before[kind], entry) {
				return fmt.Errorf("%s: %d are left, there were %d, for example %s", kind, len(list), len(before[kind]), entry)
			}
		}
	}
	return nil
}

// daemon is the process of the peer's daemon, as this process sees it.
func daemon(t *testing.T) int {
	t.Helper()
	found, err := shared.Daemons()
	if err != nil || found[host] == 0 {
		t.Fatalf("the daemon does not run: %v, %v", found, err)
	}
	return found[host]
}

// spent reads what a process has used so far.
func spent(t *testing.T, pid int) lab.Usage {
	t.Helper()
	u, err := lab.UsageOf(pid)
	if err != nil {
		t.Fatal(err)
	}
	return u
}
