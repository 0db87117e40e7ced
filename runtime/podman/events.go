package podman

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/containers/podman/v4/pkg/bindings"

	"github.com/rundigitalplatform/rookery/runtime"
)

// event is what the API sends, as far as it matters here. The names in the
// stream are Podman's for containers: create, init, start, died, cleanup, remove.
type event struct {
	Type, Action string
	Actor        struct {
		ID         string
		Attributes map[string]string
	}
}

// Events implements runtime.Runtime. Podman's events of pods carry no labels, so
// those of the infra containers, which do, stand for them.
func (r *Runtime) Events(ctx context.Context, ready func(), f func(runtime.Event)) error {
	err := r.events(ctx, ready, f)
	if ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("receive events: %w", err)
}

func (r *Runtime) events(ctx context.Context, ready func(), f func(runtime.Event)) error {
	filters, err := json.Marshal(map[string][]string{
		"type":  {"container"},
		"label": {runtime.LabelOwner + "=" + r.owner},
	})
	if err != nil {
		return err
	}
	// The service answers before it looks for events; from the second before is what
	// it would miss in between. An event that comes twice does no harm.
	since := strconv.FormatInt(time.Now().Add(-time.Second).Unix(), 10)
	query := url.Values{"stream": {"true"}, "since": {since}, "filters": {string(filters)}}
	resp, err := call(ctx, r.engine, func(ctx context.Context) (*bindings.APIResponse, error) {
		conn, err := bindings.GetClient(ctx)
		if err != nil {
			return nil, err
		}
		resp, err := conn.DoRequest(ctx, nil, http.MethodGet, "/events", query, nil)
		if err != nil {
			return nil, err
		}
		if !resp.IsSuccess() {
			defer resp.Body.Close()
			return nil, resp.Process(nil)
		}
		return resp, nil
	})
	if err != nil {
		return err
	}
	defer resp.Body.Close() // ctx ends the read: the request was made with it
	if ready != nil {
		ready()
	}
	for dec := json.NewDecoder(resp.Body); ; {
		var e event
		if err := dec.Decode(&e); err != nil {
			if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
				err = errors.New("podman closed the stream; start it again with `systemctl start podman.socket`")
			}
			return fmt.Errorf("%w: %w", runtime.ErrUnavailable, err)
		}
		if out, ok := translateEvent(e); ok {
			f(out)
		}
	}
}

// translateEvent returns false for what changes nothing that Inspect shows.
func translateEvent(e event) (runtime.Event, bool) {
	out := runtime.Event{Sandbox: e.Actor.Attributes[runtime.LabelSandbox]}
	switch e.Action {
	case "start":
		out.Type = runtime.ContainerStarted
	case "died":
		out.Type = runtime.ContainerDied
	case "remove":
		out.Type = runtime.ContainerRemoved
	default:
		return runtime.Event{}, false
	}
	if e.Actor.Attributes[labelContainer] == "" {
		if out.Type == runtime.ContainerStarted {
			out.Type = runtime.SandboxStarted
		} else {
			out.Type = runtime.SandboxEnded
		}
		return out, true
	}
	out.Container = e.Actor.ID
	return out, true
}
