package stream

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/url"
	"sync"

	"k8s.io/apiserver/pkg/util/proxy"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/streaming/pkg/httpstream/wsstream"
)

// translate serves a request of the WebSocket protocol v5, which the streaming library
// does not speak, by a SPDY request to this same handler over a pipe. It says whether
// it did; older protocols are the library's own.
func (s *server) translate(w http.ResponseWriter, r *http.Request, opts *remotecommand.Options) bool {
	if !wsstream.IsWebSocketRequestWithStreamCloseProtocol(r) {
		return false
	}
	near, far := net.Pipe()
	defer near.Close()
	listener := &pipeListener{conn: far, done: make(chan struct{})}
	inner := &http.Server{Handler: s.mux}
	var serving sync.WaitGroup
	serving.Go(func() {
		if err := inner.Serve(listener); err != nil && !errors.Is(err, net.ErrClosed) && !errors.Is(err, http.ErrServerClosed) {
			s.log.Warn("serve websocket", "error", err)
		}
	})
	defer serving.Wait()
	defer inner.Close()
	transport := &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return near, nil }}
	location := &url.URL{Scheme: "http", Host: "pipe", Path: r.URL.Path, RawQuery: r.URL.RawQuery}
	proxy.NewStreamTranslatorHandler(location, transport, 0, proxy.Options{
		Stdin: opts.Stdin, Stdout: opts.Stdout, Stderr: opts.Stderr, Tty: opts.TTY,
	}).ServeHTTP(w, r)
	return true
}

// pipeListener accepts one connection.
type pipeListener struct {
	mu   sync.Mutex
	conn net.Conn
	once sync.Once
	done chan struct{}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	l.mu.Lock()
	conn := l.conn
	l.conn = nil
	l.mu.Unlock()
	if conn != nil {
		return conn, nil
	}
	<-l.done
	return nil, net.ErrClosed
}

func (l *pipeListener) Close() error {
	l.once.Do(func() { close(l.done) })
	return nil
}

func (l *pipeListener) Addr() net.Addr { return &net.UnixAddr{Name: "pipe", Net: "unix"} }
