package aggregation

import (
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
)

type here struct{}

func (here) ResolveEndpoint(_, name string, _ int32) (*url.URL, error) {
	return &url.URL{Host: name}, nil
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// A server that does not say what documents it has is left alone for a while, and what it
// said before stays.
func TestDocumentsAreAskedWithPauses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asked, broken := 0, true
		way := roundTrip(func(*http.Request) (*http.Response, error) {
			asked++
			if broken {
				return nil, errors.New("no route to host")
			}
			return &http.Response{StatusCode: http.StatusOK, Body: io.NopCloser(strings.NewReader(`{"paths": {"apis/x.test/v1": "one", "apis/y.test/v1": "other"}}`))}, nil
		})
		a := New(Config{Scheme: runtime.NewScheme(), Resolver: here{}, Logger: slog.New(slog.DiscardHandler)})
		to := &route{
			gv:  schema.GroupVersion{Group: "x.test", Version: "v1"},
			way: way, notebook: &notebook{}, spec: apiregistrationv1.APIServiceSpec{Service: &apiregistrationv1.ServiceReference{Name: "x"}},
		}
		ask := func(wantAsked, wantPaths int) {
			t.Helper()
			for range 3 {
				if paths := a.paths(t.Context(), to); asked != wantAsked || len(paths) != wantPaths {
					t.Errorf("%v after %d questions, want %d paths after %d", paths, asked, wantPaths, wantAsked)
				}
			}
		}
		ask(1, 0)
		time.Sleep(pause + time.Second)
		broken = false
		ask(2, 1)
		time.Sleep(pause + time.Second)
		ask(2, 1)
		time.Sleep(memory)
		broken = true
		ask(3, 1)
	})
}
