package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"sync"
)

// Images is what image loading needs of this peer.
type Images struct {
	// Load reads an archive into this peer's engine.
	Load func(context.Context, io.Reader) ([]string, error)
	// Spool is a directory with room for an archive.
	Spool string
}

// loadImage takes an archive and loads it here and, with peer=all (the default),
// on every peer that is alive; with peer=NAME on that one only. It answers with
// one ImageResult a line as the peers finish.
func (s *Server) loadImage(w http.ResponseWriter, r *http.Request) {
	want := r.URL.Query().Get("peer")
	if want == s.Self {
		names, err := s.Images.Load(r.Context(), r.Body)
		s.stream(w, result(s.Self, names, err))
		return
	}
	var targets []string
	for _, p := range s.Peers() {
		switch {
		case want != "" && want != "all" && p.Name != want:
		case p.State == Alive:
			targets = append(targets, p.Name)
		case want == p.Name:
			s.reply(w, nil, requestError(fmt.Sprintf("peer %s is %s; try again when it is alive", p.Name, p.State)))
			return
		}
	}
	if len(targets) == 0 {
		s.reply(w, nil, requestError(fmt.Sprintf("there is no peer %q; `rookery peers` lists them", want)))
		return
	}
	spool, err := s.spool(r.Body)
	if err != nil {
		s.reply(w, nil, err)
		return
	}
	defer os.Remove(spool)
	var mu sync.Mutex
	var all sync.WaitGroup
	for _, peer := range targets {
		all.Go(func() {
			names, err := s.loadOn(r.Context(), peer, spool)
			mu.Lock()
			defer mu.Unlock()
			s.stream(w, result(peer, names, err))
		})
	}
	all.Wait()
}

func result(peer string, names []string, err error) ImageResult {
	res := ImageResult{Peer: peer, Names: names}
	if err != nil {
		res.Error = err.Error()
	}
	return res
}

func (s *Server) stream(w http.ResponseWriter, res ImageResult) {
	if err := json.NewEncoder(w).Encode(res); err != nil {
		s.Log.Debug("answer was not read", "err", err)
	}
	if err := http.NewResponseController(w).Flush(); err != nil {
		s.Log.Debug("answer was not flushed", "err", err)
	}
}

// spool keeps the archive on disk, so that every peer can be sent the whole of it at its own speed.
func (s *Server) spool(body io.Reader) (string, error) {
	f, err := os.CreateTemp(s.Images.Spool, "image-*.tar")
	if err != nil {
		return "", fmt.Errorf("keep the archive for a moment: %w", err)
	}
	_, err = io.Copy(f, body)
	if err = errors.Join(err, f.Close()); err != nil {
		os.Remove(f.Name())
		return "", fmt.Errorf("keep the archive for a moment: %w", err)
	}
	return f.Name(), nil
}

func (s *Server) loadOn(ctx context.Context, peer, spool string) ([]string, error) {
	f, err := os.Open(spool)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if peer == s.Self {
		return s.Images.Load(ctx, f)
	}
	c, err := s.peer(peer)
	if err != nil {
		return nil, err
	}
	var res ImageResult
	if err := c.LoadImage(ctx, f, peer, func(r ImageResult) { res = r }); err != nil {
		return nil, err
	}
	if res.Error != "" {
		return nil, errors.New(res.Error)
	}
	return res.Names, nil
}
