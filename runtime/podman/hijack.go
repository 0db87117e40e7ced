package podman

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"

	"github.com/containers/podman/v4/pkg/errorhandling"

	"github.com/rundigitalplatform/rookery/runtime"
)

// stream is a connection that has left HTTP behind: raw bytes in both directions.
// The bindings' own attach and exec are not used: they change the shared HTTP
// client while others use it, and take the terminal's size from this process's.
type stream struct {
	net.Conn
	r *bufio.Reader // what Conn sent, from the first byte after the headers
}

// hijack makes a request after which the connection belongs to the caller, who closes it.
func (e *engine) hijack(ctx context.Context, path string, query url.Values, body []byte) (*stream, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", e.socket)
	if err != nil {
		return nil, e.explain(ctx, err)
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	s, err := upgrade(conn, path, query, body)
	if err != nil {
		conn.Close()
		return nil, e.explain(ctx, err)
	}
	return s, nil
}

func upgrade(conn net.Conn, path string, query url.Values, body []byte) (*stream, error) {
	target := url.URL{Scheme: "http", Host: "d", Path: "/v4.0.0/libpod" + path, RawQuery: query.Encode()}
	req, err := http.NewRequest(http.MethodPost, target.String(), bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", "tcp")
	if err := req.Write(conn); err != nil {
		return nil, err
	}
	s := &stream{Conn: conn, r: bufio.NewReader(conn)}
	resp, err := http.ReadResponse(s.r, req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode == http.StatusSwitchingProtocols || resp.StatusCode == http.StatusOK {
		return s, nil
	}
	defer resp.Body.Close()
	model := &errorhandling.ErrorModel{}
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(data, model); err != nil {
		return nil, fmt.Errorf("podman answered %s: %q", resp.Status, data)
	}
	return nil, model
}

// pump moves bytes between s and the caller's streams until the other side ends
// or ctx does. The goroutine that reads Stdin ends with its next read: nothing
// can interrupt a plain io.Reader.
func (s *stream) pump(ctx context.Context, streams runtime.Streams) error {
	defer context.AfterFunc(ctx, func() { s.Close() })()
	if streams.Stdin != nil {
		go func() {
			// An error here shows on the reading side too, or is the caller's own
			// reader's; either way the command sees the end of its input.
			_, _ = io.Copy(s.Conn, streams.Stdin)
			if c, ok := s.Conn.(*net.UnixConn); ok {
				_ = c.CloseWrite()
			}
		}()
	}
	var err error
	if streams.TTY {
		_, err = io.Copy(orDiscard(streams.Stdout), s.r)
	} else {
		err = demultiplex(s.r, orDiscard(streams.Stdout), orDiscard(streams.Stderr))
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

func orDiscard(w io.Writer) io.Writer {
	if w == nil {
		return io.Discard
	}
	return w
}

// demultiplex reads frames as Docker's attach has them: a byte that names the
// stream, three zeros, the length in four, then as many bytes.
func demultiplex(r io.Reader, stdout, stderr io.Writer) error {
	for {
		var header [8]byte
		if _, err := io.ReadFull(r, header[:]); errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("read stream: %w", err)
		}
		frame := io.LimitReader(r, int64(binary.BigEndian.Uint32(header[4:])))
		var err error
		switch header[0] {
		case 0, 1:
			_, err = io.Copy(stdout, frame)
		case 2:
			_, err = io.Copy(stderr, frame)
		case 3:
			message, readErr := io.ReadAll(frame)
			err = errors.Join(errors.New(string(message)), readErr)
		default:
			err = fmt.Errorf("unknown stream %d", header[0])
		}
		if err != nil {
			return fmt.Errorf("copy stream: %w", err)
		}
	}
}
