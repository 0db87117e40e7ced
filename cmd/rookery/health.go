package main

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/rundigitalplatform/rookery/apiserver"
)

// components are the parts of this peer that /healthz asks after. A part that ends
// takes the process down with it; these are the ones that can be unwell and live on.
func (p *peer) components() []apiserver.Component {
	return []apiserver.Component{
		{Name: "quorum", Check: func(r *http.Request) error {
			ctx, cancel := context.WithTimeout(r.Context(), time.Second)
			defer cancel()
			return p.store.Sync(ctx)
		}},
		{Name: "podman", Check: func(*http.Request) error { return p.agent.Engine() }},
		{Name: "pod-network", Check: func(*http.Request) error {
			select {
			case <-p.network.Ready():
				return nil
			default:
				return errors.New("the pod network is not set up yet")
			}
		}},
	}
}
