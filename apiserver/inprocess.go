package apiserver

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"sync"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authentication/user"
	clientrest "k8s.io/client-go/rest"
)

// identityKey marks the context of a request that was made inside the process.
// No request from the network can carry it.
type identityKey struct{}

// ClientConfig returns a client of this very server with the given identity.
// Requests pass the whole chain of filters without a socket; watches stream.
// Protocol upgrades (exec, attach, port-forward) do not work through it. Group
// system:authenticated is added. It may be used before Run, but answers to
// callers outside system:masters need Run's informers.
func (s *Server) ClientConfig(name string, groups ...string) *clientrest.Config {
	return &clientrest.Config{
		Host:      "http://apiserver.rookery.internal",
		UserAgent: name,
		Transport: &inProcess{server: s, user: &user.DefaultInfo{Name: name, Groups: groups}},
		QPS:       -1,
		ContentConfig: clientrest.ContentConfig{
			ContentType:        runtime.ContentTypeProtobuf,
			AcceptContentTypes: runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON,
		},
		// On an island every answer carries a warning; components of this process know it already.
		WarningHandler: clientrest.NoWarnings{},
	}
}

// inProcessIdentity authenticates requests made through [Server.ClientConfig].
func inProcessIdentity(r *http.Request) (*authenticator.Response, bool, error) {
	u, ok := r.Context().Value(identityKey{}).(user.Info)
	if !ok {
		return nil, false, nil
	}
	return &authenticator.Response{User: u}, true, nil
}

// inProcess is a round tripper that calls the server's handler.
type inProcess struct {
	server *Server
	user   user.Info
}

func (t *inProcess) RoundTrip(req *http.Request) (*http.Response, error) {
	ctx, cancel := context.WithCancel(context.WithValue(req.Context(), identityKey{}, t.user))
	r := req.Clone(ctx)
	r.RequestURI = req.URL.RequestURI()
	r.RemoteAddr = "127.0.0.1:0"
	r.Host = req.URL.Host
	if r.Body == nil {
		r.Body = http.NoBody
	}

	body, out := io.Pipe()
	w := &pipeResponse{header: http.Header{}, body: out, started: make(chan struct{})}
	// When the caller gives up, its reads and the handler's writes must both end.
	stop := context.AfterFunc(ctx, func() { out.CloseWithError(context.Canceled) })
	go func() {
		defer func() {
			// The filters answer panics; what comes through is http.ErrAbortHandler.
			err := error(nil)
			if p := recover(); p != nil {
				err = fmt.Errorf("serve request in process: %v", p)
			}
			w.WriteHeader(http.StatusOK)
			out.CloseWithError(err)
			stop()
			r.Body.Close()
		}()
		t.server.handler.ServeHTTP(w, r)
	}()

	select {
	case <-w.started:
	case <-req.Context().Done():
		cancel()
		return nil, req.Context().Err()
	}
	return &http.Response{
		Status:        http.StatusText(w.code),
		StatusCode:    w.code,
		Proto:         "HTTP/1.1",
		ProtoMajor:    1,
		ProtoMinor:    1,
		Header:        w.sent,
		Body:          &responseBody{PipeReader: body, cancel: cancel},
		ContentLength: -1,
		Request:       req,
	}, nil
}

// responseBody ends the handler when the caller closes the body, as a closed connection would.
type responseBody struct {
	*io.PipeReader
	cancel context.CancelFunc
}

func (b *responseBody) Close() error {
	err := b.PipeReader.Close()
	b.cancel()
	return err
}

// pipeResponse is the handler's end of an in-process request.
type pipeResponse struct {
	header  http.Header
	body    *io.PipeWriter
	once    sync.Once
	started chan struct{} // closed when code and sent are final
	code    int
	sent    http.Header
}

func (w *pipeResponse) Header() http.Header { return w.header }

func (w *pipeResponse) WriteHeader(code int) {
	w.once.Do(func() {
		w.code, w.sent = code, w.header.Clone()
		close(w.started)
	})
}

func (w *pipeResponse) Write(p []byte) (int, error) {
	w.WriteHeader(http.StatusOK)
	return w.body.Write(p)
}

// Flush sends the header; written bytes are never held back.
func (w *pipeResponse) Flush() { w.WriteHeader(http.StatusOK) }

// CloseNotify exists because Kubernetes' response writers keep an http.Flusher
// reachable only together with it; the request's context is what ends requests.
func (w *pipeResponse) CloseNotify() <-chan bool { return make(chan bool) }
