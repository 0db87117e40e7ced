package registry

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/rundigitalplatform/rookery/test/image"
)

func TestRegistry(t *testing.T) {
	var archive bytes.Buffer
	if err := image.Write(&archive, image.Spec{Names: []string{"a:1"}, Files: []image.File{{Path: "/f", Data: []byte("x")}}}); err != nil {
		t.Fatal(err)
	}
	r := &Registry{}
	digest, err := r.Push("team/a:1", &archive)
	if err != nil {
		t.Fatal(err)
	}
	r.Set("team/", Rule{User: "u", Password: "p"})
	server := httptest.NewServer(r)
	defer server.Close()
	get := func(path, user, password string) (int, string) {
		t.Helper()
		req, err := http.NewRequest(http.MethodGet, server.URL+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		if user != "" {
			req.SetBasicAuth(user, password)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		data, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(data)
	}
	for _, tt := range []struct {
		path, user, password string
		status               int
		want                 string
	}{
		{"/v2/", "", "", 401, "UNAUTHORIZED"},
		{"/v2/", "u", "p", 200, ""},
		{"/v2/team/a/manifests/1", "u", "wrong", 401, "UNAUTHORIZED"},
		{"/v2/team/a/manifests/1", "u", "p", 200, `"layers":[{`},
		{"/v2/team/a/manifests/" + digest, "u", "p", 200, `"layers":[{`},
		{"/v2/team/a/manifests/2", "u", "p", 404, "MANIFEST_UNKNOWN"},
		{"/v2/team/a/blobs/sha256:0", "u", "p", 404, "BLOB_UNKNOWN"},
		{"/v2/other/manifests/1", "", "", 404, "MANIFEST_UNKNOWN"},
	} {
		if status, body := get(tt.path, tt.user, tt.password); status != tt.status || !strings.Contains(body, tt.want) {
			t.Errorf("%s as %q: %d %s, want %d and %q", tt.path, tt.user, status, body, tt.status, tt.want)
		}
	}
	if n := r.Count("team/a"); n != 2 {
		t.Errorf("manifests were read %d times, want 2", n)
	}
}
