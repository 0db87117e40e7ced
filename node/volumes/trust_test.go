package volumes

import (
	"strings"
	"testing"

	"github.com/rundigitalplatform/rookery/node/spec"
)

// The certificates of a trust bundle are projected each once, and nothing else of it.
func TestTrustBundle(t *testing.T) {
	for _, tt := range []struct{ name, source, want string }{
		{"by name", `{clusterTrustBundle: {name: ca, path: ca.pem}}`, "ca.pem 644 -----BEGIN CERTIFICATE-----\nYQ==\n-----END CERTIFICATE-----\n-----BEGIN CERTIFICATE-----\nYg==\n-----END CERTIFICATE-----\n"},
		{"missing", `{clusterTrustBundle: {name: none, path: ca.pem}}`, `error: volume "v": clustertrustbundle "none" not found`},
		{"of a signer", `{clusterTrustBundle: {signerName: example.org/s, path: ca.pem}}`, `error: volume "v": clustertrustbundles of signer "example.org/s" not found`},
		{"optional", `{clusterTrustBundle: {name: none, path: ca.pem, optional: true}}`, "ca.pem 644 "},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := New(t.TempDir(), &issuer{})
			pod := podOf(t, "volumes: [{name: v, projected: {sources: ["+tt.source+"]}}]")
			_, err := m.Setup(t.Context(), pod, spec.PodInfo{}, objects{})
			if err != nil {
				if "error: "+err.Error() != tt.want {
					t.Error(err)
				}
				return
			}
			if have := tree(t, m.volumeDir(pod.UID, "v")); strings.TrimSuffix(have, "\n") != strings.TrimSuffix(tt.want, "\n") {
				t.Errorf("have\n%s\nwant\n%s", have, tt.want)
			}
		})
	}
}
