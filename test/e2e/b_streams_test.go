package e2e

import (
	"crypto/rand"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

const streamPods = `apiVersion: v1
kind: Pod
metadata: {name: streams, namespace: hello}
spec:
  nodeName: h2
  terminationGracePeriodSeconds: 0
  initContainers:
  - {name: prepare, image: "localhost/busybox:1", command: [sh, -c, "echo prepared"]}
  containers:
  - name: one
    image: localhost/busybox:1
    command: [sh, -c, "echo first; sleep 1.2; echo second; sleep 1.2; echo third >&2; while :; do sleep 1; done"]
  - name: two
    image: localhost/busybox:1
    command: [sh, -c, "echo from two; while [ ! -f /go ]; do sleep 0.1; done; seq 1 500000; echo end; while :; do sleep 1; done"]
---
apiVersion: v1
kind: Pod
metadata: {name: crashing, namespace: hello}
spec:
  nodeName: h2
  containers:
  - {name: c, image: "localhost/busybox:1", command: [sh, -c, "echo attempt $(date +%s%N); exit 3"]}
---
apiVersion: v1
kind: Pod
metadata: {name: reader, namespace: hello}
spec:
  nodeName: h2
  restartPolicy: Never
  containers:
  - {name: c, image: "localhost/busybox:1", stdin: true, stdinOnce: true, command: [sh, -c, "while read line; do echo got $line; done; echo over"]}
---
apiVersion: v1
kind: Pod
metadata: {name: listener, namespace: hello}
spec:
  nodeName: h2
  terminationGracePeriodSeconds: 0
  restartPolicy: Never
  containers:
  - {name: c, image: "localhost/busybox:1", stdin: true, command: [sh, -c, "while read line; do echo got $line; done; echo over"]}
---
apiVersion: v1
kind: Pod
metadata: {name: terminal, namespace: hello}
spec:
  nodeName: h2
  terminationGracePeriodSeconds: 0
  restartPolicy: Never
  containers:
  - {name: c, image: "localhost/busybox:1", stdin: true, tty: true, command: [sh]}
`

// What kubectl can ask of a pod's streams, from another peer than the pod's.
func TestStreams(t *testing.T) {
	manifest := filepath.Join(t.TempDir(), "streams.yaml")
	if err := os.WriteFile(manifest, []byte(streamPods), 0o644); err != nil {
		t.Fatal(err)
	}
	sh(t, "h1", "rookery apply -f "+manifest)
	defer sh(t, "h1", "rookery delete --ignore-not-found -f "+manifest)
	sh(t, "h1", "rookery -n hello wait --for=condition=Ready pod/streams pod/reader pod/listener pod/terminal --timeout=60s")
	t.Run("logs", logs)
	t.Run("rotation", rotation)
	t.Run("previous", previous)
	t.Run("attach", attach)
	t.Run("terminal", terminal)
	t.Run("cp", cp)
}

func logs(t *testing.T) {
	contains(t, "h3", []string{"third"}, strings.Fields("rookery -n hello logs streams -c one")...)
	says := func(line, want string) {
		t.Helper()
		if out := sh(t, "h3", "rookery -n hello logs streams "+line); out != want {
			t.Errorf("logs %s printed %q, want %q", line, out, want)
		}
	}
	says("-c one", "first\nsecond\nthird\n")
	says("-c prepare", "prepared\n")
	says("-c one --tail=2", "second\nthird\n")
	says("-c one --tail=0", "")
	says("-c one --limit-bytes=8", "first\nse")
	says("-c one --since=1h", "first\nsecond\nthird\n")
	all := strings.Split(sh(t, "h3", "rookery -n hello logs streams --all-containers --prefix --tail=1"), "\n")
	slices.Sort(all) // they come in any order
	if want := []string{"", "[pod/streams/one] third", "[pod/streams/prepare] prepared", "[pod/streams/two] from two"}; !slices.Equal(all, want) {
		t.Errorf("of all containers: %q, want %q", all, want)
	}
	stamped := strings.Split(strings.TrimSpace(sh(t, "h3", "rookery -n hello logs streams -c one --timestamps")), "\n")
	at, text, _ := strings.Cut(stamped[1], " ")
	if _, err := time.Parse(time.RFC3339Nano, at); err != nil || text != "second" || len(stamped) != 3 {
		t.Errorf("with times: %q %v", stamped, err)
	}
	says("-c one --since-time="+at, "second\nthird\n")
	time.Sleep(2 * time.Second)
	says("-c one --since=1s", "")
	if out := must(t, "h3", "sh", "-c", "f=$(mktemp); rookery -n hello logs -f --tail=1 streams -c one > $f & p=$!; "+
		"for i in $(seq 300); do [ -s $f ] && break; sleep 0.2; done; sleep 1; kill $p; cat $f; rm $f"); out != "third\n" {
		t.Errorf("followed %q", out)
	}
	if out := refused(t, "h3", strings.Fields("rookery -n hello logs streams -c none")...); !strings.Contains(out, "container none is not valid for pod streams") {
		t.Errorf("of no container: %s", out)
	}
}

// rotation: the log is more than twice as large as a file may be. Who follows loses nothing.
func rotation(t *testing.T) {
	want := must(t, "h3", "sh", "-c", "(echo from two; seq 1 500000; echo end) | md5sum")
	file := filepath.Join(t.TempDir(), "followed")
	got := must(t, "h3", "sh", "-c", "timeout 240 rookery -n hello logs -f streams -c two > "+file+" & p=$!; "+
		"while kill -0 $p && ! grep -q 'from two' "+file+"; do sleep 0.2; done; rookery -n hello exec streams -c two -- touch /go; "+
		"while kill -0 $p && ! tail -n 1 "+file+" | grep -q end; do sleep 0.5; done; kill $p; md5sum < "+file)
	if got != want {
		t.Errorf("what was followed is not what was printed: %s, want %s", got, want)
	}
	if out := sh(t, "h3", "rookery -n hello logs streams -c two --tail=3"); out != "499999\n500000\nend\n" {
		t.Errorf("the end is %q", out)
	}
	if out := sh(t, "h3", "rookery -n hello logs streams -c two --limit-bytes=1"); len(out) != 1 {
		t.Errorf("one byte is %q", out)
	}
}

func previous(t *testing.T) {
	var before string
	eventually(t, 90*time.Second, func() error {
		out, err := shared.Run(t.Context(), "h3", "rookery", "-n", "hello", "logs", "--previous", "crashing")
		before = out
		return err
	})
	if now := sh(t, "h3", "rookery -n hello logs crashing"); !strings.HasPrefix(before, "attempt ") || now == before || strings.Count(before, "\n") != 1 {
		t.Errorf("before %q, now %q", before, now)
	}
	if out := refused(t, "h3", strings.Fields("rookery -n hello logs --previous streams -c one")...); !strings.Contains(out, `previous terminated container "one" in pod "streams" not found`) {
		t.Errorf("of one that never ended: %s", out)
	}
}

func attach(t *testing.T) {
	out := must(t, "h3", "sh", "-c", "(sleep 1; echo a word; sleep 1) | rookery -n hello attach -i reader")
	if !strings.Contains(out, "got a word\n") || !strings.Contains(out, "over\n") {
		t.Errorf("attach printed %q", out)
	}
	contains(t, "h3", []string{"Succeeded"}, strings.Fields("rookery -n hello get pod reader -o jsonpath={.status.phase}")...)
	// Without stdinOnce the input is that of everybody who comes, one after the other.
	for _, line := range []string{"first", "second", "third"} {
		must(t, "h3", "sh", "-c", "echo "+line+" | timeout 60 rookery -n hello attach -i listener")
	}
	contains(t, "h3", []string{"got first\ngot second\ngot third\n"}, strings.Fields("rookery -n hello logs listener")...)
	contains(t, "h3", []string{"Running"}, strings.Fields("rookery -n hello get pod listener -o jsonpath={.status.phase}")...)
	out = must(t, "h3", "sh", "-c", "echo piped | rookery -n hello run piped -i --rm --restart=Never --image=localhost/busybox:1 --command -- sh -c 'sleep 1; cat; exit 0'")
	if !strings.Contains(out, "piped\n") {
		t.Errorf("run -i printed %q", out)
	}
}

// terminal: the program sees the size of the user's, also when that changes.
func terminal(t *testing.T) {
	out := must(t, "h3", "sh", "-c", `(sleep 1; echo 'echo $((40+2))'; sleep 1; echo exit; sleep 1) | script -qec 'rookery -n hello attach -it terminal' /dev/null`)
	if !strings.Contains(out, "42") {
		t.Errorf("attach -it printed %q", out)
	}
	file := filepath.Join(t.TempDir(), "typescript")
	for name, sockets := range map[string]string{"WebSocket": "true", "SPDY": "false"} {
		// The size changes when the program has told the first one, and it ends when it has seen the second.
		// It changes once: of two changes at a time kubectl may lose the latter.
		out := must(t, "h3", "sh", "-c", "rm -f "+file+"; (until grep -q 31.91 "+file+"; do sleep 0.2; done; sleep 1; touch "+file+".seen; sleep 8) | "+
			"timeout 60 script -qefc '"+
			"stty cols 91 rows 31; (until [ -f "+file+".seen ]; do sleep 0.2; done; stty cols 77 </dev/tty) & "+
			"KUBECTL_REMOTE_COMMAND_WEBSOCKETS="+sockets+` rookery -n hello exec -it streams -c one -- sh -c "until stty size | grep 31.77; do stty size; sleep 0.5; done; exit 4"; echo code $?' `+file+"; rm -f "+file+".seen")
		for _, want := range []string{"31 91", "31 77", "code 4"} {
			if !strings.Contains(out, want) {
				t.Errorf("%s: printed %q, want %q", name, out, want)
			}
		}
	}
}

// cp: a large file and a directory, to the pod and back.
func cp(t *testing.T) {
	dir := t.TempDir()
	data := make([]byte, 8<<20)
	if _, err := rand.Read(data); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(dir+"/tree/sub", 0o755); err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{"large": data, "tree/a": []byte("a\n"), "tree/sub/b c": []byte("b\n")} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o640); err != nil {
			t.Fatal(err)
		}
	}
	sh(t, "h3", "rookery -n hello cp -c one "+dir+"/large streams:/tmp/large")
	sh(t, "h3", "rookery -n hello cp -c one hello/streams:/tmp/large "+dir+"/back")
	if back, err := os.ReadFile(dir + "/back"); err != nil || string(back) != string(data) {
		t.Errorf("%d bytes came back of %d: %v", len(back), len(data), err)
	}
	sh(t, "h3", "rookery -n hello cp -c one "+dir+"/tree streams:/tmp/tree")
	if out := sh(t, "h3", "rookery -n hello exec streams -c one -- find /tmp/tree -type f"); !strings.Contains(out, "/tmp/tree/a\n") || !strings.Contains(out, "/tmp/tree/sub/b c\n") {
		t.Errorf("the pod has %q", out)
	}
	sh(t, "h3", "rookery -n hello cp -c one streams:/tmp/tree "+dir+"/again")
	if b, err := os.ReadFile(dir + "/again/sub/b c"); err != nil || string(b) != "b\n" {
		t.Errorf("came back: %q %v", b, err)
	}
}
