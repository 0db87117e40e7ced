package apifuzz

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func reason(err error) metav1.StatusReason { return errors.ReasonForError(err) }

func (a *agent) find(_ context.Context, node string) (*url.URL, http.RoundTripper, error) {
	if strings.HasSuffix(node, "1") {
		return nil, nil, fmt.Errorf("node %s is out of reach", node)
	}
	at, err := url.Parse(a.URL)
	return at, a.Client().Transport, err
}

// misbehave answers by the length of the path: well, with an error, too much, with a
// switch of protocols that leads nowhere, or by breaking off.
func misbehave(w http.ResponseWriter, r *http.Request) {
	switch (len(r.URL.RequestURI()) + len(r.Header)) % 7 {
	case 0:
		fmt.Fprint(w, "a line of a log\n")
	case 1:
		http.Error(w, "the agent is broken\x00\xff", http.StatusInternalServerError)
	case 2:
		w.Write(bytes.Repeat([]byte("much "), 1<<18))
	case 3:
		w.Header().Set("Connection", "Upgrade")
		w.Header().Set("Upgrade", r.Header.Get("Upgrade"))
		w.WriteHeader(http.StatusSwitchingProtocols)
	case 4:
		panic(http.ErrAbortHandler)
	case 5:
		w.WriteHeader(http.StatusOK)
		w.(http.Flusher).Flush()
		select {
		case <-r.Context().Done():
		case <-time.After(3 * time.Second):
		}
	case 6:
		http.Redirect(w, r, "http://127.0.0.1:1/elsewhere", http.StatusFound)
	}
}
