package e2e

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// helm runs one of the two Helms from the machine beside the peers.
type helm struct{ program string }

func helms() []helm {
	return []helm{{"helm3"}, {"helm4"}}
}

func (h helm) argv(t *testing.T, line string) []string {
	t.Helper()
	here, err := filepath.Abs(".")
	if err != nil {
		t.Fatal(err)
	}
	// In the host's mounts this directory has to be entered anew: Helm asks for its name.
	enter := []string{"sh", "-c", `cd "$0" && exec "$@"`, here}
	return append(append(enter, filepath.Join(here, "../../bin", h.program), "--namespace", h.program), strings.Fields(line)...)
}

func (h helm) run(t *testing.T, line string) string {
	t.Helper()
	return must(t, "client", h.argv(t, line)...)
}

// A chart lives its whole life: hooks, waiting, upgrade, rollback, test and delete, by
// Helm 3, which patches three ways, and Helm 4, which applies on the server's side.
func TestHelm(t *testing.T) {
	for _, h := range helms() {
		t.Run(h.program, func(t *testing.T) {
			defer sh(t, "h1", "rookery delete namespace --ignore-not-found "+h.program)
			t.Run("install", h.install)
			t.Run("upgrade", h.upgrade)
			t.Run("an upgrade that fails is rolled back", h.failedUpgrade)
			t.Run("rollback", h.rollback)
			t.Run("uninstall", h.uninstall)
			t.Run("a hook that fails", h.failedHook)
		})
	}
}

func (h helm) install(t *testing.T) {
	out := h.run(t, "install shop testdata/shop --create-namespace --wait --timeout 120s")
	for _, want := range []string{"STATUS: deployed", "REVISION: 1", "The shop shop says Hello", "Found kube-system."} {
		if !strings.Contains(out, want) {
			t.Errorf("install says %q, want %q in it", out, want)
		}
	}
	h.ready(t, 2)
	if out := sh(t, "h2", "rookery -n "+h.program+" get job shop-pre-install -o jsonpath={.status.succeeded}"); out != "1" {
		t.Errorf("the hook before succeeded %q times", out)
	}
	if out := h.run(t, "test shop --timeout 60s --logs"); !strings.Contains(out, "Succeeded") || !strings.Contains(out, "Hello from pod shop-") {
		t.Errorf("test says %q", out)
	}
	if out := h.run(t, "get manifest shop"); !strings.Contains(out, "kind: StatefulSet") {
		t.Errorf("manifest: %q", out)
	}
	if out := h.run(t, "list"); !strings.Contains(out, "shop-0.1.0") {
		t.Errorf("list says %q", out)
	}
}

func (h helm) upgrade(t *testing.T) {
	// What somebody else has changed and the chart does not mention stays.
	sh(t, "h1", "rookery -n "+h.program+" label configmap shop mine=kept")
	out := h.run(t, "upgrade shop testdata/shop --set replicas=3,greeting=Welcome,version=2 --wait --timeout 120s")
	if !strings.Contains(out, "REVISION: 2") || !strings.Contains(out, "says Welcome") {
		t.Errorf("upgrade says %q", out)
	}
	h.ready(t, 3)
	if out := sh(t, "h3", "rookery -n "+h.program+" logs job/shop-post-upgrade"); out != "upgraded\n" {
		t.Errorf("the hook after printed %q", out)
	}
	if out := sh(t, "h3", "rookery -n "+h.program+" get configmap shop -o jsonpath={.metadata.labels.mine}{.data.GREETING}"); out != "keptWelcome" {
		t.Errorf("the config map has %q", out)
	}
}

func (h helm) failedUpgrade(t *testing.T) {
	flag := "--atomic"
	if h.program == "helm4" {
		flag = "--rollback-on-failure"
	}
	out := refused(t, "client", h.argv(t, "upgrade shop testdata/shop --set image=localhost/nowhere:1 --reuse-values --timeout 20s "+flag)...)
	if !strings.Contains(out, "shop") {
		t.Errorf("the upgrade says %q", out)
	}
	if out := h.run(t, "history shop"); !strings.Contains(out, "failed") || !strings.Contains(out, "Rollback to 2") {
		t.Errorf("history: %s", out)
	}
	h.ready(t, 3)
}

func (h helm) rollback(t *testing.T) {
	h.run(t, "rollback shop 1 --wait --timeout 120s")
	h.ready(t, 2)
	if out := sh(t, "h1", "rookery -n "+h.program+" get configmap shop -o jsonpath={.data.GREETING}"); out != "Hello" {
		t.Errorf("greeting after the rollback: %q", out)
	}
	if out := h.run(t, "status shop"); !strings.Contains(out, "STATUS: deployed") || !strings.Contains(out, "REVISION: 5") {
		t.Errorf("status says %q", out)
	}
}

func (h helm) uninstall(t *testing.T) {
	h.run(t, "uninstall shop --wait --timeout 60s")
	if out := sh(t, "h2", "rookery -n "+h.program+" logs job/shop-pre-delete"); out != "farewell\n" {
		t.Errorf("the hook before the end printed %q", out)
	}
	if out := refused(t, "client", h.argv(t, "history shop")...); !strings.Contains(out, "not found") {
		t.Errorf("the history of what is gone: %s", out)
	}
	eventually(t, 20*time.Second, func() error {
		kinds := "deployments,statefulsets,services,configmaps,secrets,serviceaccounts,roles,rolebindings,poddisruptionbudgets,horizontalpodautoscalers"
		if out := sh(t, "h3", "rookery -n "+h.program+" get "+kinds+" -o name"); strings.Contains(out, "/shop") {
			return fmt.Errorf("left behind: %s", out)
		}
		return nil
	})
}

func (h helm) failedHook(t *testing.T) {
	out := refused(t, "client", h.argv(t, "install broken testdata/shop --set preInstall=false --timeout 60s")...)
	if !strings.Contains(out, "pre-install") || !strings.Contains(out, "broken-pre-install") || !strings.Contains(out, "BackoffLimitExceeded") && !strings.Contains(out, "ailed") {
		t.Errorf("install with a hook that fails says %q", out)
	}
	if out := sh(t, "h1", "rookery -n "+h.program+" get deployments -o name"); out != "" {
		t.Errorf("installed all the same: %s", out)
	}
	h.run(t, "uninstall broken --no-hooks")
}

// ready waits until so many of the chart's pods are Ready and no more are left.
func (h helm) ready(t *testing.T, n int) {
	t.Helper()
	eventually(t, patience, func() error {
		out, err := shared.Run(t.Context(), "h1", "rookery", "-n", h.program, "get", "pods", "-l", "app=shop", "-o", `jsonpath={.items[*].status.conditions[?(@.type=="Ready")].status}`)
		if err != nil || strings.Count(out, "True") != n || strings.Contains(out, "False") {
			return fmt.Errorf("Ready: %s, want %d %v", out, n, err)
		}
		return nil
	})
}

// A chart brings its own kinds in crds/, and objects of them.
func TestHelmCustomResources(t *testing.T) {
	for _, h := range helms() {
		t.Run(h.program, func(t *testing.T) {
			defer sh(t, "h1", "rookery delete crd --ignore-not-found widgets.helm.example.com")
			defer sh(t, "h1", "rookery delete namespace --ignore-not-found "+h.program)
			h.run(t, "install parts testdata/widgets --create-namespace --wait --timeout 60s")
			h.run(t, "upgrade parts testdata/widgets --set size=7")
			if out := sh(t, "h2", "rookery -n "+h.program+" get widget parts -o jsonpath={.spec.size}"); out != "7" {
				t.Errorf("size %q", out)
			}
			if out := refused(t, "client", h.argv(t, "upgrade parts testdata/widgets --set size=0")...); !strings.Contains(out, "greater than or equal to 1") {
				t.Errorf("an object that does not fit its schema: %q", out)
			}
			h.run(t, "rollback parts 1")
			h.run(t, "uninstall parts --wait")
		})
	}
}
