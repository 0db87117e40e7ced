package podman

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"syscall"

	"github.com/containers/podman/v4/libpod/define"
	"github.com/containers/podman/v4/pkg/bindings"
	"github.com/containers/podman/v4/pkg/errorhandling"

	"github.com/rundigitalplatform/rookery/runtime"
)

// engine is the connection to the API: one HTTP client for all calls.
type engine struct {
	socket string
	// connecting holds one token; whoever has it may read and write connection.
	connecting chan struct{}
	connection context.Context // as the bindings made it; nil before the first success
}

func newEngine(socket string) *engine {
	return &engine{socket: socket, connecting: make(chan struct{}, 1)}
}

// callContext is the caller's context that also carries the bindings' connection,
// which they keep in context values, and how the call's first attempt went.
type callContext struct {
	context.Context
	connection context.Context
	attempt    *attempt
}

type attemptKey struct{}

// attempt belongs to one API call. The bindings repeat a failed request three
// times, which must not happen to one that may have had an effect.
type attempt struct{ err error }

func (c callContext) Value(key any) any {
	if _, ok := key.(attemptKey); ok {
		return c.attempt
	}
	if v := c.Context.Value(key); v != nil {
		return v
	}
	return c.connection.Value(key)
}

// connect returns ctx with the connection in it, making that the first time.
func (e *engine) connect(ctx context.Context) (context.Context, error) {
	select {
	case e.connecting <- struct{}{}:
		defer func() { <-e.connecting }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if e.connection == nil {
		connection, err := bindings.NewConnection(ctx, "unix://"+e.socket)
		if err != nil {
			return nil, err
		}
		client, err := bindings.GetClient(connection)
		if err != nil {
			return nil, err
		}
		base, ok := client.Client.Transport.(*http.Transport)
		if !ok {
			return nil, fmt.Errorf("unexpected transport %T", client.Client.Transport)
		}
		base.MaxIdleConnsPerHost = 2 * maxStarts // the default of 2 would dial anew for nearly every parallel call
		client.Client.Transport = once{base}
		e.connection = context.WithoutCancel(connection)
	}
	return callContext{ctx, e.connection, &attempt{}}, nil
}

// once keeps the bindings from repeating a request that may have been carried out.
type once struct{ base http.RoundTripper }

func (o once) RoundTrip(req *http.Request) (*http.Response, error) {
	a, ok := req.Context().Value(attemptKey{}).(*attempt)
	if !ok || req.Method == http.MethodGet {
		return o.base.RoundTrip(req)
	}
	if a.err != nil {
		return nil, a.err
	}
	resp, err := o.base.RoundTrip(req)
	var op *net.OpError
	if err != nil && !(errors.As(err, &op) && op.Op == "dial") {
		a.err = err
	}
	return resp, err
}

// call runs f, which makes one API call by the bindings, and returns when it does
// or when ctx ends. The bindings sleep between their attempts without looking at
// the context, so f may be left behind for less than a second.
func call[T any](ctx context.Context, e *engine, f func(context.Context) (T, error)) (T, error) {
	type result struct {
		value T
		err   error
	}
	done := make(chan result, 1)
	go func() {
		var res result
		with, err := e.connect(ctx)
		if err == nil {
			res.value, err = f(with)
		}
		res.err = err
		done <- res
	}()
	var zero T
	select {
	case res := <-done:
		if res.err != nil {
			return zero, e.explain(ctx, res.err)
		}
		return res.value, nil
	case <-ctx.Done():
		return zero, e.late(ctx)
	}
}

// late says that the caller's time was over before Podman answered.
func (e *engine) late(ctx context.Context) error {
	if !errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return ctx.Err()
	}
	return fmt.Errorf("podman did not answer in time at %s; look for storage that hangs and processes that wait for it (`ps -eo state,pid,args | grep ^D`), else try `systemctl restart podman.service`: %w", e.socket, ctx.Err())
}

// do is call for calls without a result.
func do(ctx context.Context, e *engine, f func(context.Context) error) error {
	_, err := call(ctx, e, func(ctx context.Context) (struct{}, error) { return struct{}{}, f(ctx) })
	return err
}

// explain turns what the bindings return into the errors of package runtime.
func (e *engine) explain(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return e.late(ctx)
	}
	var model *errorhandling.ErrorModel
	if errors.As(err, &model) {
		return explainModel(model)
	}
	var netErr net.Error
	var connectErr bindings.ConnectError
	if errors.As(err, &netErr) || errors.As(err, &connectErr) {
		return e.unavailable(err)
	}
	return err
}

func (e *engine) unavailable(err error) error {
	cure := "is it hung? try `systemctl restart podman.service`"
	switch {
	case errors.Is(err, os.ErrPermission):
		cure = "rookery must run as root"
	case errors.Is(err, os.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		cure = fmt.Sprintf("start it with `systemctl enable --now podman.socket`, or `podman system service -t 0 unix://%s`", e.socket)
	}
	return fmt.Errorf("%w: podman does not answer at %s (%w); %s", runtime.ErrUnavailable, e.socket, err, cure)
}

// explainModel maps an error that Podman answered. It has one status, 500, for
// most of them; its field "cause" is the text of a libpod error and meant for this.
func explainModel(model *errorhandling.ErrorModel) error {
	const (
		nameInUse    = "that name is already in use" // containers/storage ErrDuplicateName
		imageUnknown = "image not known"             // containers/storage ErrImageUnknown
	)
	switch model.Because {
	case define.ErrPodExists.Error(), define.ErrCtrExists.Error(), nameInUse:
		return fmt.Errorf("%w: %s", runtime.ErrExists, model.Message)
	case define.ErrNoSuchPod.Error(), define.ErrNoSuchCtr.Error(), define.ErrPodRemoved.Error(), define.ErrCtrRemoved.Error(), imageUnknown:
		return fmt.Errorf("%w: %s", runtime.ErrNotFound, model.Message)
	}
	if model.ResponseCode == http.StatusNotFound {
		return fmt.Errorf("%w: %s", runtime.ErrNotFound, model.Message)
	}
	return errors.New(model.Message)
}
