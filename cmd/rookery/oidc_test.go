package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestOIDCSettings(t *testing.T) {
	dir := t.TempDir()
	notPEM := filepath.Join(dir, "ca.crt")
	if err := os.WriteFile(notPEM, []byte("hello"), 0o600); err != nil {
		t.Fatal(err)
	}
	issuer := "oidc-issuer-url: https://id.example.com\n"
	both := issuer + "oidc-client-id: rookery\n"
	for _, tt := range []struct{ file, err string }{
		{both, ""},
		{both + "oidc-groups-claim: groups\noidc-required-claim: {hd: example.com, tier: gold}\noidc-signing-algs: [RS256, ES256]", ""},
		{issuer, "oidc-client-id is missing"},
		{"oidc-client-id: rookery", "set that too"},
		{"oidc-issuer-url: http://id.example.com\noidc-client-id: rookery", "is not an https URL"},
		{"oidc-issuer-url: id.example.com\noidc-client-id: rookery", "is not an https URL"},
		{"oidc-issuer-url: https://kubernetes.default.svc\noidc-client-id: rookery", "this cluster's own"},
		{both + "oidc-signing-algs: [HS256]", "there are ES256"},
		{both + "oidc-ca-file: " + filepath.Join(dir, "none"), "no such file"},
		{both + "oidc-ca-file: " + notPEM, "holds no certificate"},
		{both + "oidc-client: x", `did you mean "oidc-client-id"?`},
	} {
		c, f := settings()
		path := filepath.Join(dir, "config.yaml")
		if err := os.WriteFile(path, []byte(tt.file), 0o600); err != nil {
			t.Fatal(err)
		}
		err := load(f, path, true, nil)
		if err == nil {
			_, err = c.OIDC.load()
		}
		if (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
			t.Errorf("%q: got %v, want an error with %q", tt.file, err, tt.err)
		}
	}
	none, _ := settings()
	if o, err := none.OIDC.load(); o != nil || err != nil {
		t.Errorf("without an issuer: %v, %v", o, err)
	}
}
