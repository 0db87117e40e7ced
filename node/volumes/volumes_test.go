package volumes

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	certificatesv1 "k8s.io/api/certificates/v1"
	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/yaml"

	"github.com/rundigitalplatform/rookery/node/spec"
)

type objects struct{ configMaps, secrets map[string]map[string]string }

func (o objects) ConfigMap(_, name string) (*v1.ConfigMap, error) {
	if data, ok := o.configMaps[name]; ok {
		return &v1.ConfigMap{Data: data}, nil
	}
	return nil, apierrors.NewNotFound(schema.GroupResource{Resource: "configmaps"}, name)
}

func (o objects) TrustBundles(of *v1.ClusterTrustBundleProjection) ([]certificatesv1.ClusterTrustBundle, error) {
	if of.Name == nil || *of.Name != "ca" {
		return nil, nil
	}
	return []certificatesv1.ClusterTrustBundle{{Spec: certificatesv1.ClusterTrustBundleSpec{TrustBundle: twoCertificates}}}, nil
}

// twoCertificates are three blocks, one of them twice.
const twoCertificates = `words
-----BEGIN CERTIFICATE-----
Yg==
-----END CERTIFICATE-----
-----BEGIN CERTIFICATE-----
YQ==
-----END CERTIFICATE-----
-----BEGIN CERTIFICATE-----
Yg==
-----END CERTIFICATE-----
`

func (o objects) Secret(_, name string) (*v1.Secret, error) {
	data, ok := o.secrets[name]
	if !ok {
		return nil, apierrors.NewNotFound(schema.GroupResource{Resource: "secrets"}, name)
	}
	out := map[string][]byte{}
	for k, v := range data {
		out[k] = []byte(v)
	}
	return &v1.Secret{Data: out}, nil
}

type issuer struct {
	n   int
	err error
}

func (i *issuer) Token(_ context.Context, _ *v1.Pod, audience string, life time.Duration) (string, time.Time, error) {
	if i.err != nil {
		return "", time.Time{}, i.err
	}
	i.n++
	return fmt.Sprintf("token-%d-%s", i.n, audience), time.Now().Add(life), nil
}

func podOf(t *testing.T, text string) *v1.Pod {
	t.Helper()
	pod := &v1.Pod{}
	pod.Name, pod.Namespace, pod.UID = "a", "shop", "u1"
	if err := yaml.UnmarshalStrict([]byte(text), &pod.Spec); err != nil {
		t.Fatal(err)
	}
	return pod
}

// tree lists what a program sees: path, mode and content of each visible file.
func tree(t *testing.T, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), "..") {
			continue
		}
		top, err := filepath.EvalSymlinks(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		err = filepath.Walk(top, func(p string, info os.FileInfo, err error) error {
			if err != nil || info.IsDir() {
				return err
			}
			data, err := os.ReadFile(p)
			rel, _ := filepath.Rel(top, p)
			out = append(out, fmt.Sprintf("%s %o %s", filepath.Join(e.Name(), rel), info.Mode().Perm(), data))
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	sort.Strings(out)
	return strings.Join(out, "\n")
}

func TestContents(t *testing.T) {
	src := objects{
		configMaps: map[string]map[string]string{"c": {"k": "v", "l": "w"}},
		secrets:    map[string]map[string]string{"s": {"p": "hush"}},
	}
	for _, tt := range []struct{ name, volume, want string }{
		{"configMap", `configMap: {name: c}`, "k 644 v\nl 644 w"},
		{"items and modes", `configMap: {name: c, defaultMode: 0600, items: [{key: k, path: d/e}, {key: l, path: f, mode: 0444}]}`, "d/e 600 v\nf 444 w"},
		{"no such key", `configMap: {name: c, items: [{key: q, path: f}]}`, `error: volume "v": configmap "c" references non-existent key: q`},
		{"secret", `secret: {secretName: s, defaultMode: 0400}`, "p 400 hush"},
		{"optional", `secret: {secretName: none, optional: true}`, ""},
		{"missing", `secret: {secretName: none}`, `error: volume "v": secret "none" not found`},
		{"downward", `downwardAPI: {items: [{path: name, fieldRef: {fieldPath: metadata.name}}]}`, "name 644 a"},
		{"projected", `projected: {sources: [{configMap: {name: c, items: [{key: k, path: k}]}}, {secret: {name: s}}, {serviceAccountToken: {path: token, audience: x}}]}`,
			"k 644 v\np 644 hush\ntoken 644 token-1-x"},
		{"claim", `persistentVolumeClaim: {claimName: disk}`, `error: volume "v": persistentVolumeClaim "disk": persistent volumes are not supported yet; use hostPath or emptyDir`},
		{"escaping", `configMap: {name: c, items: [{key: k, path: ../x}]}`, `error: volume "v": path "../x" must be relative and must not contain '..'`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := New(t.TempDir(), &issuer{})
			pod := podOf(t, "{containers: [{name: web}], volumes: [{name: v, "+tt.volume+"}]}")
			_, err := m.Setup(context.Background(), pod, spec.PodInfo{}, src)
			have := ""
			if err != nil {
				have = "error: " + err.Error()
			} else {
				have = tree(t, m.volumeDir("u1", "v"))
			}
			if have != tt.want {
				t.Errorf("have %s\nwant %s", have, tt.want)
			}
		})
	}
}

func TestUpdateIsAtomicAndOnlyWhenNeeded(t *testing.T) {
	src := objects{configMaps: map[string]map[string]string{"c": {"k": "1", "old": "x"}}}
	m := New(t.TempDir(), &issuer{})
	pod := podOf(t, "{containers: [{name: web}], volumes: [{name: v, configMap: {name: c}}]}")
	setup := func() string {
		if _, err := m.Setup(context.Background(), pod, spec.PodInfo{}, src); err != nil {
			t.Fatal(err)
		}
		version, err := os.Readlink(filepath.Join(m.volumeDir("u1", "v"), "..data"))
		if err != nil {
			t.Fatal(err)
		}
		return version
	}
	first := setup()
	if again := setup(); again != first {
		t.Error("written again although nothing changed")
	}
	src.configMaps["c"] = map[string]string{"k": "2", "new": "y"}
	if setup() == first {
		t.Error("a change was not written")
	}
	if have, want := tree(t, m.volumeDir("u1", "v")), "k 644 2\nnew 644 y"; have != want {
		t.Errorf("have %s\nwant %s", have, want)
	}
	if err := m.Cleanup("u1"); err != nil {
		t.Fatal(err)
	}
	if left, err := m.Pods(); err != nil || len(left) != 0 {
		t.Errorf("left %v %v", left, err)
	}
}

func TestTokenIsRenewedAndKept(t *testing.T) {
	tokens := &issuer{}
	m := New(t.TempDir(), tokens)
	pod := podOf(t, "{containers: [{name: web}], volumes: [{name: v, projected: {sources: [{serviceAccountToken: {path: token, expirationSeconds: 1000}}]}}]}")
	next, err := m.Setup(context.Background(), pod, spec.PodInfo{}, objects{})
	if err != nil {
		t.Fatal(err)
	}
	if d := time.Until(next); d < 790*time.Second || d > 800*time.Second {
		t.Errorf("renewed after %s, want 80 %% of 1000 s", d)
	}
	// A new daemon on an island has to do with what is on disk.
	tokens.err = errors.New("no quorum")
	m = New(m.dir, tokens)
	if _, err := m.Setup(context.Background(), pod, spec.PodInfo{}, objects{}); err != nil {
		t.Fatal(err)
	}
	if have := tree(t, m.volumeDir("u1", "v")); have != "token 644 token-1-" {
		t.Errorf("have %s", have)
	}
}

func TestSubPathStaysInside(t *testing.T) {
	dir := t.TempDir()
	if err := os.Symlink("/etc", filepath.Join(dir, "out")); err != nil {
		t.Fatal(err)
	}
	for sub, ok := range map[string]bool{"a/b": true, "out": false, "out/passwd": false, "../x": false, "/etc": false} {
		fd, err := openSub(dir, sub, true)
		if (err == nil) != ok {
			t.Errorf("%s: %v", sub, err)
		}
		if err == nil {
			unix.Close(fd)
		}
	}
	if _, err := openSub(dir, "none", false); err == nil {
		t.Error("what is not there was made")
	}
}

func TestResolvConf(t *testing.T) {
	host := "nameserver 192.0.2.53\nsearch site.example\noptions timeout:1\n"
	for _, tt := range []struct{ name, pod, want string }{
		{"cluster", `dnsPolicy: ClusterFirst`, "search shop.svc.cluster.local svc.cluster.local cluster.local site.example\nnameserver 10.43.0.10\noptions ndots:5\n"},
		{"default", `dnsPolicy: Default`, "search site.example\nnameserver 192.0.2.53\noptions timeout:1\n"},
		{"host network", `{dnsPolicy: ClusterFirst, hostNetwork: true}`, "search site.example\nnameserver 192.0.2.53\noptions timeout:1\n"},
		{"host network, cluster", `{dnsPolicy: ClusterFirstWithHostNet, hostNetwork: true}`, "search shop.svc.cluster.local svc.cluster.local cluster.local site.example\nnameserver 10.43.0.10\noptions ndots:5\n"},
		{"none", `{dnsPolicy: None, dnsConfig: {nameservers: [192.0.2.1], searches: [x], options: [{name: ndots, value: "2"}]}}`, "search x\nnameserver 192.0.2.1\noptions ndots:2\n"},
		{"default, merged", `{dnsPolicy: Default, dnsConfig: {nameservers: [192.0.2.1, 192.0.2.53, 192.0.2.2, 192.0.2.3], searches: [site.example, x]}}`,
			"search site.example x\nnameserver 192.0.2.53\nnameserver 192.0.2.1\nnameserver 192.0.2.2\noptions timeout:1\n"},
		{"too long", `{dnsPolicy: None, dnsConfig: {nameservers: [192.0.2.1], searches: [` + strings.Repeat("a", 2000) + `, b, ` + strings.Repeat("c", 50) + `]}}`,
			"search " + strings.Repeat("a", 2000) + " b\nnameserver 192.0.2.1\n"},
		{"merged", `{dnsPolicy: ClusterFirst, dnsConfig: {options: [{name: ndots, value: "1"}, {name: edns0}]}}`, "search shop.svc.cluster.local svc.cluster.local cluster.local site.example\nnameserver 10.43.0.10\noptions ndots:1 edns0\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			have := resolvConf(podOf(t, tt.pod), Etc{ClusterDNS: netip.MustParseAddr("10.43.0.10"), ClusterDomain: "cluster.local", HostResolv: []byte(host)})
			if have != tt.want {
				t.Errorf("have:\n%s\nwant:\n%s", have, tt.want)
			}
		})
	}
}

func TestHosts(t *testing.T) {
	have := hosts(podOf(t, `{hostname: h, subdomain: sub, hostAliases: [{ip: 192.0.2.9, hostnames: [x, z]}]}`), Etc{PodIPs: []string{"10.42.0.7"}, ClusterDomain: "cluster.local"})
	for _, want := range []string{"127.0.0.1\tlocalhost", "10.42.0.7\th.sub.shop.svc.cluster.local\th", "192.0.2.9\tx\tz"} {
		if !strings.Contains(have, want) {
			t.Errorf("no %q in:\n%s", want, have)
		}
	}
}

func TestHostPath(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		path string
		kind v1.HostPathType
		want string
	}{
		{dir, v1.HostPathDirectory, ""},
		{file, v1.HostPathFile, ""},
		{file, v1.HostPathDirectory, "is not a directory, it's a File"},
		{dir + "/new", v1.HostPathDirectoryOrCreate, ""},
		{dir + "/newfile", v1.HostPathFileOrCreate, ""},
		{dir + "/none", v1.HostPathFile, "is not a file, unable to determine its type: path"},
		{file, v1.HostPathSocket, "is not a socket file, it's a File"},
		{"/dev/null", v1.HostPathCharDev, ""},
		{dir + "/unset", v1.HostPathUnset, ""},
	} {
		err := hostPath(&v1.HostPathVolumeSource{Path: tt.path, Type: &tt.kind})
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%s as %q: %v, want %q", tt.path, tt.kind, err, tt.want)
		}
	}
}
