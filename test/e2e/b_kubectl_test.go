package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const tool = `apiVersion: v1
kind: Pod
metadata: {name: tool, namespace: hello, labels: {app: tool}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: tool
    image: localhost/busybox:1
    command: [/bin/sh, -c, 'trap "exit 0" TERM; while :; do echo tick; sleep 0.2; done']
    stdin: true
`

// Rookery is kubectl against each of the peers, whichever peer the pod is on.
func TestKubectlAgainstEachPeer(t *testing.T) {
	manifest := filepath.Join(t.TempDir(), "tool.yaml")
	if err := os.WriteFile(manifest, []byte(tool), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, h := range shared.Peers() {
		t.Run(h.Name, func(t *testing.T) {
			sh(t, h.Name, "rookery apply -f "+manifest)
			sh(t, h.Name, "rookery -n hello wait --for=condition=Ready pod/tool --timeout=60s")
			sh(t, h.Name, "rookery diff -f "+manifest)
			for _, line := range []string{"get pods -o wide", "get all", "describe pod tool", "describe node " + h.Name, "get events", "explain deployment.spec.strategy", "api-resources", "auth can-i create pods"} {
				if out := sh(t, h.Name, "rookery -n hello "+line); out == "" {
					t.Errorf("%s printed nothing", line)
				}
			}
			if out := must(t, h.Name, "sh", "-c", "timeout 60 rookery -n hello logs -f tool | head -3"); strings.Count(out, "tick") != 3 {
				t.Errorf("logs -f printed %q", out)
			}
			if out := must(t, h.Name, "sh", "-c", "echo 'echo terminal $((40+2)); exit 3' | script -qec 'rookery -n hello exec -it tool -- /bin/sh' /dev/null; true"); !strings.Contains(out, "terminal 42") {
				t.Errorf("exec -it printed %q", out)
			}
			if out := must(t, h.Name, "sh", "-c", "rookery -n hello exec tool -- /bin/sh -c 'echo out; echo err >&2; exit 7'; echo code $?"); !strings.Contains(out, "code 7") || !strings.Contains(out, "err") {
				t.Errorf("exec printed %q", out)
			}
			if out := must(t, h.Name, "sh", "-c", "echo piped | rookery -n hello exec -i tool -- cat"); out != "piped\n" {
				t.Errorf("exec -i printed %q", out)
			}
			sh(t, h.Name, "rookery -n hello delete pod tool --timeout=30s")
			eventually(t, 10*time.Second, func() error {
				_, err := shared.Run(t.Context(), h.Name, "sh", "-c", "! rookery -n hello get pod tool")
				return err
			})
			sh(t, h.Name, shared.Bin+"/kubectl version")
		})
	}
}
