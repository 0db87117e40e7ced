package podman

import (
	"bytes"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/rundigitalplatform/rookery/runtime"
	"github.com/rundigitalplatform/rookery/test/image"
	"github.com/rundigitalplatform/rookery/test/registry"
)

// newRegistry has an image of so many random bytes under each name.
func newRegistry(t *testing.T, size int, names ...string) (reg *registry.Registry, digest map[string]string) {
	reg, digest = &registry.Registry{}, map[string]string{}
	for _, name := range names {
		data := make([]byte, size)
		if _, err := rand.Read(data); err != nil {
			t.Fatal(err)
		}
		var archive bytes.Buffer
		if err := image.Write(&archive, image.Spec{Names: []string{name}, Files: []image.File{{Path: "/f", Data: data}}}); err != nil {
			t.Fatal(err)
		}
		var err error
		if digest[name], err = reg.Push(name, &archive); err != nil {
			t.Fatal(err)
		}
	}
	return reg, digest
}

// TestPull pulls from registries that fail in every way, and from some that do not.
func TestPull(t *testing.T) {
	requirePodman(t)
	reg, digest := newRegistry(t, 10_000, "team/a:1", "secret/a:1", "cut/a:1", "fail/a:1", "library/hub:1")
	reg.Set("secret/", registry.Rule{User: "u", Password: "p"})
	reg.Set("cut/", registry.Rule{Cut: true})
	reg.Set("fail/", registry.Rule{Status: 503})
	plain, secure := httptest.NewServer(reg), httptest.NewTLSServer(reg)
	defer plain.Close()
	defer secure.Close()
	address, secureAddress := plain.Listener.Addr().String(), secure.Listener.Addr().String()
	s := startServiceWith(t, fmt.Sprintf(`unqualified-search-registries = [%[1]q]
[[registry]]
location = %[1]q
insecure = true
[[registry]]
location = "mirrored.test"
[[registry.mirror]]
location = %[1]q
insecure = true
[[registry]]
location = "blocked.test"
blocked = true
`, address), 0)
	rt := newRuntime(t, s.socket, "pull")
	login := &runtime.RegistryAuth{Username: "u", Password: "p"}
	for _, tt := range []struct {
		ref  string
		auth *runtime.RegistryAuth
		want string // a name or digest of the image, or after a ! a part of the error
	}{
		{address + "/team/a:1", nil, address + "/team/a:1"},
		{address + "/team/a@" + digest["team/a:1"], nil, address + "/team/a@" + digest["team/a:1"]},
		{"team/a:1", nil, address + "/team/a:1"}, // short: looked for where registries.conf says
		{"mirrored.test/team/a:1", nil, "mirrored.test/team/a:1"},
		{address + "/secret/a:1", nil, "!unauthorized"},
		{address + "/secret/a:1", &runtime.RegistryAuth{Username: "u", Password: "wrong"}, "!unauthorized"},
		{address + "/secret/a:1", login, address + "/secret/a:1"},
		{address + "/team/a:2", nil, "!manifest unknown"},
		{address + "/team/a@sha256:" + strings.Repeat("0", 64), nil, "!manifest unknown"},
		{address + "/fail/a:1", nil, "!503 Service Unavailable"},
		{address + "/cut/a:1", nil, "!EOF"},
		{secureAddress + "/team/a:1", nil, "!certificate signed by unknown authority"},
		{"no.such.host.test/team/a:1", nil, "!no.such.host.test"},
		{"127.0.0.1:1/team/a:1", nil, "!connection refused"},
		{"blocked.test/team/a:1", nil, "!registry blocked.test is blocked"},
		{"localhost/a:1", nil, "!localhost"},
	} {
		img, err := rt.PullImage(t.Context(), tt.ref, tt.auth)
		if cause, fails := strings.CutPrefix(tt.want, "!"); fails {
			if err == nil || !strings.Contains(err.Error(), cause) || errors.Is(err, runtime.ErrUnavailable) {
				t.Errorf("pull %s: %v, want %q", tt.ref, err, cause)
			}
			continue
		}
		if err != nil || !slices.Contains(append(img.Names, img.Digests...), tt.want) {
			t.Errorf("pull %s: %+v %v, want %s", tt.ref, img, err, tt.want)
		}
		if again, err := rt.Image(t.Context(), tt.ref); err != nil || again.ID != img.ID {
			t.Errorf("look up %s: %+v %v", tt.ref, again, err)
		}
	}
}

// TestPullTrusts a registry whose authority the machine knows by a certs.d directory.
func TestPullTrusts(t *testing.T) {
	requirePodman(t)
	reg, _ := newRegistry(t, 10_000, "team/a:1")
	server := httptest.NewTLSServer(reg)
	defer server.Close()
	address := server.Listener.Addr().String()
	certs := filepath.Join("/etc/containers/certs.d", address)
	if err := os.MkdirAll(certs, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(certs); err != nil {
			t.Error(err)
		}
	})
	authority := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	if err := os.WriteFile(certs+"/ca.crt", authority, 0o644); err != nil {
		t.Fatal(err)
	}
	s := startService(t)
	if _, err := newRuntime(t, s.socket, "pull").PullImage(t.Context(), address+"/team/a:1", nil); err != nil {
		t.Error(err)
	}
}

// TestPullWithoutSpace says what there is too little of, and leaves nothing behind.
func TestPullWithoutSpace(t *testing.T) {
	requirePodman(t)
	reg, _ := newRegistry(t, 24<<20, "team/a:1")
	server := httptest.NewServer(reg)
	defer server.Close()
	address := server.Listener.Addr().String()
	s := startServiceWith(t, fmt.Sprintf("[[registry]]\nlocation = %q\ninsecure = true\n", address), 16<<20)
	rt := newRuntime(t, s.socket, "pull")
	if _, err := rt.PullImage(t.Context(), address+"/team/a:1", nil); err == nil || !strings.Contains(err.Error(), "no space left on device") {
		t.Errorf("pull: %v", err)
	}
	if list, err := rt.Images(t.Context()); err != nil || len(list) != 0 {
		t.Errorf("left: %+v %v", list, err)
	}
	info, err := rt.Info(t.Context())
	if err != nil || info.StoreDir != s.dir+"/root" || info.StoreFree < 12<<20 {
		t.Errorf("info is %+v %v", info, err)
	}
}
