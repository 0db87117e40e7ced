package e2e

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rundigitalplatform/rookery/test/lab"
)

// A manifest that is wrong is refused in one clear message, and nothing of it is applied.
func TestBadManifests(t *testing.T) {
	for name, tt := range map[string]struct{ manifest, says string }{
		"wrong field":  {`{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"bad","namespace":"hello"},"dta":{}}`, `unknown field "dta"`},
		"wrong type":   {`{"apiVersion":"apps/v1","kind":"Deployment","metadata":{"name":"bad","namespace":"hello"},"spec":{"replicas":"three"}}`, "replicas"},
		"unknown kind": {`{"apiVersion":"v1","kind":"Podd","metadata":{"name":"bad","namespace":"hello"}}`, `no matches for kind "Podd"`},
		"invalid name": {`{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"Bad_Name","namespace":"hello"}}`, "RFC 1123"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "bad.json")
			if err := os.WriteFile(path, []byte(tt.manifest), 0o644); err != nil {
				t.Fatal(err)
			}
			if out := refused(t, "h1", "rookery", "apply", "-f", path); !strings.Contains(out, tt.says) {
				t.Errorf("it says %q, want %q in it", out, tt.says)
			}
			if out := sh(t, "h1", "rookery -n hello get configmaps,deployments -o name"); strings.Contains(strings.ToLower(out), "bad") {
				t.Errorf("half of it was applied: %s", out)
			}
		})
	}
}

// blank starts a lab of one host with Podman and no peer.
func blank(t *testing.T) (*lab.Lab, func(argv ...string) (string, error)) {
	t.Helper()
	dir := filepath.Join(os.TempDir(), "rookery-"+strings.ToLower(strings.ReplaceAll(t.Name(), "/", "-")))
	l, err := lab.Up(t.Context(), lab.Options{Dir: dir, Peers: 1, Bin: "../../bin", Blank: true}, func(string) {})
	t.Cleanup(func() {
		if err := lab.Down(context.Background(), dir); err != nil {
			t.Error(err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return l, func(argv ...string) (string, error) {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		return l.Run(ctx, "h1", argv...)
	}
}

// What keeps a machine from being a peer is told in one message with the cure,
// and nothing is left half done.
func TestUpRefusesWithTheCure(t *testing.T) {
	l, run := blank(t)
	dir := l.HostDir("h1") + "/rookery"
	foreign := strings.TrimSpace(sh(t, "h1", "rookery token create --quiet"))
	for _, tt := range []struct{ name, setup, command, says, cleanup string }{
		{"port in use", "busybox nc -l -p 6443 >/dev/null 2>&1 & echo $! >/tmp/nc.pid; until grep -q ':192B .* 0A ' /proc/net/tcp /proc/net/tcp6; do sleep 0.1; done", "rookery up", "port 6443/tcp: is in use", "kill $(cat /tmp/nc.pid)"},
		{"podman stopped", "", "rookery up --podman-socket /run/none.sock", "systemctl enable --now podman.socket", ""},
		{"read-only data directory", "mkdir -p " + dir + "-ro && mount -t tmpfs -o ro none " + dir + "-ro", "rookery up --data-dir " + dir + "-ro", "read-only", "umount " + dir + "-ro"},
		{"full data directory", "mkdir -p " + dir + "-full && mount -t tmpfs -o size=1m none " + dir + "-full", "rookery up --data-dir " + dir + "-full", "full disk", "umount " + dir + "-full"},
		{"malformed token", "", "rookery up --join 10.77.0.9 --token nonsense", "this is not a join token", ""},
		{"nobody there", "", "timeout 30 rookery up --join 10.77.0.1:7000 --token " + foreign, "is Rookery running there", ""},
		{"bad name", "", "rookery up --name Bad_Name", "upper-case letters", ""},
		{"unknown setting", "", "ROOKERY_DATADIR=/x rookery up", `did you mean "ROOKERY_DATA_DIR"`, ""},
		{"token without join", "", "rookery up --token " + foreign, "--join", ""},
		{"mistyped verb", "", "rookery statsu", `did you mean "status"`, ""},
		{"not an image", "", "rookery image load " + dir + ".yaml", "is not an image archive", ""},
		{"no cluster here", "", "KUBECONFIG= rookery status", "no cluster is known here", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			script := tt.setup + "\n" + tt.command + "; code=$?\n" + tt.cleanup + "\nexit $code"
			out, err := run("sh", "-c", script)
			if err == nil {
				t.Fatalf("it succeeded: %s", out)
			}
			if !strings.Contains(out, tt.says) {
				t.Errorf("it says %q, want %q in it", out, tt.says)
			}
			if n := strings.Count(strings.TrimSpace(out), "\n"); n > 3 {
				t.Errorf("that is %d lines: %s", n+1, out)
			}
			if entries, _ := os.ReadDir(dir + "/pki"); len(entries) > 0 {
				t.Errorf("an identity was left: %v", entries)
			}
		})
	}
}

// Tokens that are revoked, expired or of another cluster, and a name that is
// taken, are refused where they are used.
func TestJoinRefusals(t *testing.T) {
	dir := t.TempDir()
	join := func(name, token string) string {
		return refused(t, "client", "rookery", "up", "--name", name, "--data-dir", dir+"/"+name, "--podman-socket", shared.HostDir("h1")+"/podman.sock",
			"--advertise-address", "10.77.0.100", "--join", "10.77.0.1", "--token", token)
	}
	token := strings.TrimSpace(sh(t, "h1", "rookery token create --quiet"))
	if out := join("h2", token); !strings.Contains(out, "name is taken") && !strings.Contains(out, "has the name") {
		t.Errorf("a second h2: %s", out)
	}
	id := strings.Split(token, ".")[1]
	sh(t, "h1", "rookery token revoke "+id)
	if out := join("h9", token); !strings.Contains(out, "was revoked") {
		t.Errorf("revoked token: %s", out)
	}
	short := strings.TrimSpace(sh(t, "h1", "rookery token create --quiet --expires 1s"))
	eventually(t, 10*time.Second, func() error {
		_, err := shared.Run(t.Context(), "h1", "sh", "-c", "sleep 1.2; exit 0")
		return err
	})
	if out := join("h9", short); !strings.Contains(out, "expired") {
		t.Errorf("expired token: %s", out)
	}
	fresh := strings.TrimSpace(sh(t, "h1", "rookery token create --quiet"))
	parts := strings.Split(fresh, ".")
	flipped := []byte(parts[3])
	if flipped[0] == 'a' {
		flipped[0] = 'b'
	} else {
		flipped[0] = 'a'
	}
	parts[3] = string(flipped)
	if out := join("h9", strings.Join(parts, ".")); !strings.Contains(out, "another cluster") {
		t.Errorf("token of another cluster: %s", out)
	}
	if out := sh(t, "h1", "rookery get nodes -o name"); strings.Contains(out, "h9") {
		t.Errorf("a refused machine became a node: %s", out)
	}
}
