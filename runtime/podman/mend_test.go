package podman

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
)

// Where Podman does not say which containers there are, what is damaged is told all the same.
func TestMendWithoutList(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/overlay/l/x", "")
	write(t, dir+"/overlay-layers/layers.json", "[]")
	write(t, dir+"/overlay-images/images.json", `[{"id":"cccc","names":["localhost/web:1"],"layer":"bbbb"}]`)
	rt := fakePodman(t, "5.2.0", func(w http.ResponseWriter, r *http.Request) {
		switch {
		case strings.HasSuffix(r.URL.Path, "/info"):
			fmt.Fprintf(w, `{"version":{"Version":"5.2.0"},"store":{"graphRoot":%q}}`, dir)
		case strings.HasSuffix(r.URL.Path, "/containers/json"):
			w.WriteHeader(http.StatusInternalServerError)
			_, _ = io.WriteString(w, `{"cause":"broken","message":"broken","response":500}`)
		}
	})
	found, err := rt.Mend(t.Context(), false, func(string) bool { return false })
	if err == nil || !strings.Contains(err.Error(), "list containers") {
		t.Errorf("the error is %v", err)
	}
	if len(found) != 1 || found[0].What != "image localhost/web:1: its layer bbbb is in no list" || !strings.HasPrefix(found[0].Done, "it was kept") {
		t.Errorf("told is %+v", found)
	}
}

// Podman's own check is asked from 5.2 on, and must change nothing.
func TestVerify(t *testing.T) {
	for version, want := range map[string]string{
		"5.1.2": "",
		"5.2.0": "image 0123456789ab: layer content modified; layer missing/layer fedcba987654: layer missing",
	} {
		t.Run(version, func(t *testing.T) {
			asked := make(chan string, 9)
			rt := fakePodman(t, version, func(w http.ResponseWriter, r *http.Request) {
				switch {
				case strings.HasSuffix(r.URL.Path, "/info"):
					fmt.Fprintf(w, `{"version":{"Version":%q}}`, version)
				case strings.HasSuffix(r.URL.Path, "/libpod/system/check"):
					asked <- r.Method + " " + r.URL.RawQuery
					_, _ = io.WriteString(w, `{"Errors":true,"Layers":{"fedcba9876543210":["layer missing"]},"Images":{"0123456789abcdef":["layer content modified","layer missing"]},"Containers":null,"RemovedLayers":null}`)
				}
			})
			found, err := rt.Verify(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			var said []string
			for _, d := range found {
				said = append(said, d.What)
				if d.Image != "" || !strings.Contains(d.Done, "nothing was changed") {
					t.Errorf("%+v", d)
				}
			}
			if got := strings.Join(said, "/"); got != want {
				t.Errorf("found %q, want %q", got, want)
			}
			close(asked)
			for q := range asked {
				if q != "POST quick=true" {
					t.Errorf("Podman was asked %s", q)
				}
			}
		})
	}
}
