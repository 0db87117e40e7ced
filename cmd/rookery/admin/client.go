package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// Client asks a peer.
type Client struct {
	Base string // https://host:port
	HTTP *http.Client
}

// Status asks for the one-screen summary.
func (c *Client) Status(ctx context.Context) (s Status, err error) {
	err = c.call(ctx, http.MethodGet, "status", &s)
	return s, err
}

// Peers asks for all peers.
func (c *Client) Peers(ctx context.Context) (p []PeerInfo, err error) {
	err = c.call(ctx, http.MethodGet, "peers", &p)
	return p, err
}

// RemovePeer takes a peer that is gone for good out of the cluster.
func (c *Client) RemovePeer(ctx context.Context, name string) error {
	return c.call(ctx, http.MethodDelete, "peers/"+url.PathEscape(name), nil)
}

// CreateToken makes a join token.
func (c *Client) CreateToken(ctx context.Context, ttl time.Duration) (t TokenInfo, err error) {
	err = c.call(ctx, http.MethodPost, "tokens?expires="+ttl.String(), &t)
	return t, err
}

// Tokens lists the join tokens, without their secrets.
func (c *Client) Tokens(ctx context.Context) (t []TokenInfo, err error) {
	err = c.call(ctx, http.MethodGet, "tokens", &t)
	return t, err
}

// RevokeToken makes a join token useless.
func (c *Client) RevokeToken(ctx context.Context, id string) error {
	return c.call(ctx, http.MethodDelete, "tokens/"+url.PathEscape(id), nil)
}

// SetBackend changes how packets travel between peers.
func (c *Client) SetBackend(ctx context.Context, kind string) error {
	return c.call(ctx, http.MethodPut, "network/backend/"+url.PathEscape(kind), nil)
}

// LoadImage sends an archive to one peer or to "all", and calls each with what
// became of it as the peers finish.
func (c *Client) LoadImage(ctx context.Context, archive io.Reader, peer string, each func(ImageResult)) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.Base+Prefix+"images?peer="+url.QueryEscape(peer), io.NopCloser(archive))
	if err != nil {
		return err
	}
	resp, err := c.do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	for dec := json.NewDecoder(resp.Body); ; {
		var res ImageResult
		if err := dec.Decode(&res); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("read the answer of %s: %w", c.Base, err)
		}
		each(res)
	}
}

func (c *Client) call(ctx context.Context, method, path string, into any) error {
	req, err := http.NewRequestWithContext(ctx, method, c.Base+Prefix+path, nil)
	if err != nil {
		return err
	}
	resp, err := c.do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if into == nil {
		return nil
	}
	if err := json.NewDecoder(resp.Body).Decode(into); err != nil {
		return fmt.Errorf("read the answer of %s: %w", c.Base, err)
	}
	return nil
}

// do sends a request and turns an answer that is not 2xx into an error.
func (c *Client) do(req *http.Request) (*http.Response, error) {
	resp, err := c.HTTP.Do(req)
	if err != nil {
		var ue *url.Error
		if errors.As(err, &ue) {
			err = ue.Err
		}
		return nil, fmt.Errorf("reach the peer at %s: %w; is rookery running there?", c.Base, err)
	}
	if resp.StatusCode/100 == 2 {
		return resp, nil
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err != nil {
		return nil, fmt.Errorf("%s answered %s", c.Base, resp.Status)
	}
	var f failure
	if json.Unmarshal(text, &f) == nil && f.Error != "" {
		return nil, errors.New(f.Error)
	}
	return nil, fmt.Errorf("%s answered %s: %s", c.Base, resp.Status, strings.TrimSpace(string(text)))
}
