package podman

import (
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
)

// Accounts are remembered for as long as there is their image.
func TestAccountsGoWithTheirImage(t *testing.T) {
	rt := fakePodman(t, "5.2.0", func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/images/json") {
			_, _ = io.WriteString(w, `[{"Id":"aaaa"}]`)
		}
	})
	rt.accounts[imageID("aaaa")], rt.accounts[imageID("bbbb")] = accounts{}, accounts{}
	if _, err := rt.Images(t.Context()); err != nil {
		t.Fatal(err)
	}
	if left := slices.Collect(maps.Keys(rt.accounts)); len(left) != 1 || left[0] != imageID("aaaa") {
		t.Errorf("those of %q are remembered", left)
	}
}
