package apifuzz

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"time"
)

// answer is what came of a request. code is 0 if nothing did: err says why.
type answer struct {
	call
	code int
	body []byte // its beginning
	took time.Duration
	err  error
}

// enough is how much of an answer is kept; the rest is read and dropped.
const enough = 16 << 10

func (w *world) ask(c call) answer {
	began := time.Now()
	ctx, cancel := context.WithTimeout(context.Background(), c.patience)
	defer cancel()
	a := answer{call: c}
	if c.raw != nil {
		a.code, a.body, a.err = w.send(ctx, c)
	} else {
		a.code, a.body, a.err = w.exchange(ctx, c)
	}
	a.took = time.Since(began)
	return a
}

func (w *world) exchange(ctx context.Context, c call) (int, []byte, error) {
	from := w.callers[c.caller]
	r := (&http.Request{Method: c.method, URL: &url.URL{Scheme: "https", Host: w.address, Opaque: c.target}, Header: http.Header{}, Host: "kubernetes"}).WithContext(ctx)
	if c.body != nil {
		r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(c.body)), int64(len(c.body))
	}
	maps.Copy(r.Header, c.header)
	from.authorize(r)
	client := from.first
	if c.second {
		client = from.second
	}
	resp, err := client.Do(r)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusSwitchingProtocols {
		return resp.StatusCode, nil, nil
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, enough))
	if err == nil {
		_, err = io.Copy(io.Discard, resp.Body)
	}
	return resp.StatusCode, body, err
}

// send writes raw bytes and reads what comes.
func (w *world) send(ctx context.Context, c call) (int, []byte, error) {
	from := w.callers[c.caller]
	cfg := from.tls.Clone()
	cfg.NextProtos = []string{"http/1.1"}
	conn, err := (&tls.Dialer{Config: cfg}).DialContext(ctx, "tcp", w.address)
	if err != nil {
		return 0, nil, err
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	if err := conn.SetDeadline(deadline); err != nil {
		return 0, nil, err
	}
	if _, err := conn.Write(bytes.Replace(c.raw, []byte("TOKEN"), []byte(from.token), 1)); err != nil {
		return 0, nil, err
	}
	body, err := io.ReadAll(io.LimitReader(conn, enough))
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		err = nil // a connection that is kept
	}
	code := 0
	if len(body) > 12 && bytes.HasPrefix(body, []byte("HTTP/1.")) {
		for _, b := range body[9:12] {
			code = code*10 + int(b-'0')
		}
	}
	return code, body, err
}
