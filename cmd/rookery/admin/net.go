package admin

import (
	"context"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"
)

// Service is what one peer makes of a Service.
type Service struct {
	Peer      string     `json:"peer"` // that answers
	Addresses []string   `json:"addresses"`
	Ports     []string   `json:"ports"` // "http 80/TCP, on every peer 30080"
	Endpoints []Endpoint `json:"endpoints"`
	Notes     []string   `json:"notes,omitempty"` // what is wrong or unusual
}

// Endpoint is one place that a Service could send a connection to.
type Endpoint struct {
	Port    string `json:"port"`
	Address string `json:"address"`
	Peer    string `json:"peer,omitempty"`
	Pod     string `json:"pod,omitempty"`
	LeftOut string `json:"leftOut,omitempty"` // why it gets nothing; "" if it does
}

// Probe is one try of a peer to reach something.
type Probe struct {
	From   string `json:"from"`
	To     string `json:"to"`
	What   string `json:"what"`             // "path", "pod network", "pod", "Service" or "DNS"
	Failed string `json:"failed,omitempty"` // "" for reached
	Note   string `json:"note,omitempty"`   // what is unusual, though it works
	// Untried is why it was not tried; "" for it was.
	Untried string `json:"untried,omitempty"`
}

// Net is what a peer can say of packets.
type Net struct {
	Service func(namespace, name string) (Service, error)
	Check   func(context.Context) []Probe // from this peer
	// Remote is how another peer is reached.
	Remote func(name string) (*url.URL, http.RoundTripper, error)
}

// checkTimeout bounds a peer's own tries, which have shorter limits of their own.
const checkTimeout = 30 * time.Second

func (s *Server) netService(w http.ResponseWriter, r *http.Request) {
	svc, err := s.Net.Service(r.PathValue("namespace"), r.PathValue("name"))
	s.reply(w, svc, err)
}

// netCheck has every peer that lives try, this one included.
func (s *Server) netCheck(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), checkTimeout)
	defer cancel()
	var mu sync.Mutex
	var wait sync.WaitGroup
	all := []Probe{}
	for _, p := range s.Peers() {
		if p.State == Left {
			continue
		}
		wait.Go(func() {
			var got []Probe
			switch {
			case p.Self:
				got = s.Net.Check(ctx)
			case p.State == Dead || p.State == Joining:
				got = []Probe{{From: p.Name, To: "everything", What: "pod network", Failed: "the peer is " + p.State}}
			default:
				var err error
				if got, err = s.netCheckOf(ctx, p.Name); err != nil {
					got = []Probe{{From: s.Self, To: p.Name, What: "peer", Failed: err.Error()}}
				}
			}
			mu.Lock()
			defer mu.Unlock()
			all = append(all, got...)
		})
	}
	wait.Wait()
	slices.SortFunc(all, func(a, b Probe) int {
		return slices.Compare([]string{a.From, a.What, a.To}, []string{b.From, b.What, b.To})
	})
	s.reply(w, all, nil)
}

func (s *Server) netCheckOf(ctx context.Context, name string) (probes []Probe, err error) {
	c, err := s.peer(name)
	if err != nil {
		return nil, err
	}
	err = c.call(ctx, http.MethodGet, "net/check/self", &probes)
	return probes, err
}

// NetService asks what the peer makes of a Service.
func (c *Client) NetService(ctx context.Context, namespace, name string) (s Service, err error) {
	err = c.call(ctx, http.MethodGet, "net/services/"+url.PathEscape(namespace)+"/"+url.PathEscape(name), &s)
	return s, err
}

// NetCheck has every peer try to reach the others.
func (c *Client) NetCheck(ctx context.Context) (p []Probe, err error) {
	err = c.call(ctx, http.MethodGet, "net/check", &p)
	return p, err
}
