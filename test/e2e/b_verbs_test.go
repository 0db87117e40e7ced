package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const verbs = `apiVersion: v1
kind: ConfigMap
metadata: {name: verb-a, namespace: hello, labels: {set: verbs}}
data: {k: one}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: verb-b, namespace: hello, labels: {set: verbs}}
data: {k: one}
`

// The verbs that ask more of the API than to keep objects.
func TestKubectlVerbs(t *testing.T) {
	file := filepath.Join(t.TempDir(), "verbs.yaml")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write(verbs)
	scale(t, "h1", 3)
	defer sh(t, "h1", "rookery -n hello delete configmap -l set=verbs")
	says := func(line, want string) {
		t.Helper()
		if out := sh(t, "h1", "rookery -n hello "+line); !strings.Contains(out, want) {
			t.Errorf("%s says %q, want %q in it", line, out, want)
		}
	}
	says("create --dry-run=server -f "+file, "created (server dry run)")
	says("get configmaps -l set=verbs", "No resources found")
	says("apply --server-side -f "+file, "serverside-applied")
	write(strings.Replace(verbs, "k: one", "k: two", 1))
	if out := refused(t, "h1", "rookery", "diff", "-f", file); !strings.Contains(out, "+  k: two") {
		t.Errorf("diff says %q", out)
	}
	if out := refused(t, "h1", "rookery", "apply", "--server-side", "--field-manager=other", "-f", file); !strings.Contains(out, "conflict") {
		t.Errorf("apply of another's field says %q", out)
	}
	says("apply --server-side --field-manager=other --force-conflicts -f "+file, "serverside-applied")
	says("apply -f "+file, "configured")
	first, _, _ := strings.Cut(verbs, "---")
	write(first)
	says("apply --prune -l set=verbs --prune-allowlist=core/v1/ConfigMap -f "+file, "configmap/verb-b pruned")
	says("auth whoami", "system:masters")
	if out := refused(t, "h1", "rookery", "auth", "can-i", "delete", "pods", "--as=nobody"); !strings.HasPrefix(out, "no") {
		t.Errorf("nobody may: %q", out)
	}
	says("explain pod.spec.containers.livenessProbe", "FIELDS")
	says("events --for deployment/hello", "ScalingReplicaSet")
	says("get --raw /apis/apps/v1", `"deployments/scale"`)
	says("rollout history deployment/hello", "REVISION")
	says("get deployment hello --subresource=status -o name", "deployment.apps/hello")
	if out := must(t, "h1", "sh", "-c", "rookery proxy --port=8901 >/dev/null & p=$!; for i in $(seq 60); do "+shared.Bin+"/hello get http://127.0.0.1:8901/api/v1/namespaces/hello/configmaps/verb-a && break; sleep 1; done; kill $p"); !strings.Contains(out, `"verb-a"`) {
		t.Errorf("through the proxy: %q", out)
	}
}

// A drain obeys disruption budgets, empties the node, and uncordon takes it back.
func TestDrain(t *testing.T) {
	spread(t, "h1")
	sh(t, "h1", "rookery -n hello create pdb hello --selector=app=hello --min-available=9")
	if out := refused(t, "h1", "rookery", "drain", "h3", "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=8s"); !strings.Contains(out, "disruption budget") {
		t.Errorf("drain against the budget says %q", out)
	}
	sh(t, "h1", "rookery -n hello delete pdb hello")
	defer sh(t, "h1", "rookery uncordon h3")
	sh(t, "h1", "rookery drain h3 --ignore-daemonsets --delete-emptydir-data --timeout=90s")
	if out := sh(t, "h2", "rookery -n hello get pods --field-selector spec.nodeName=h3 -o name"); out != "No resources found in hello namespace.\n" && out != "" {
		t.Errorf("left on h3: %s", out)
	}
	eventually(t, patience, func() error {
		_, err := shared.Run(t.Context(), "h1", "rookery", "-n", "hello", "rollout", "status", "deployment/hello", "--timeout=5s")
		return err
	})
}
