package customresources

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/apiserver/pkg/endpoints/discovery/aggregated"
	"k8s.io/apiserver/pkg/util/webhook"
	"k8s.io/client-go/rest"

	"github.com/rundigitalplatform/rookery/raftstore"
)

// Config is what an [API] is made of. All fields are required.
type Config struct {
	Store  raftstore.Store
	Logger *slog.Logger
	// Life ends with the API server; what was made for definitions lives as long.
	Life context.Context
	// Client reaches the API server itself, with every right.
	Client *rest.Config
	// Admission is asked before a custom resource is written, Authorizer before an
	// update creates one.
	Admission  admission.Interface
	Authorizer authorizer.Authorizer
	// Services finds the Services of conversion webhooks.
	Services webhook.ServiceResolver
	// Groups and Aggregated are the two forms of the list of groups at /apis.
	Groups     Groups
	Aggregated aggregated.ResourceManager
	// BuiltIn tells which groups are served by others: what is defined in them is not
	// served. It must not block.
	BuiltIn func(group string) bool
	// Register is told, on the leader, all group versions that are defined, whenever that
	// may have changed. After an error it is called again.
	Register func(context.Context, []schema.GroupVersion) error
	// KubernetesVersion is of the packages that build documents; it is part of their hash.
	KubernetesVersion string
	// RequestTimeout bounds a request, WatchTimeout is the shortest life of a watch that
	// names none, MaxBodyBytes bounds a request's body.
	RequestTimeout, WatchTimeout time.Duration
	MaxBodyBytes                 int64
}

// API serves custom resources. Its methods may be called concurrently.
type API struct {
	cfg   Config
	found *found

	awake   chan struct{} // closed when serving is set
	running sync.WaitGroup

	mu      sync.Mutex
	serving *serving // nil: there has been no definition yet
}

// New returns an API that has read and started nothing.
func New(cfg Config) *API {
	a := &API{cfg: cfg, awake: make(chan struct{})}
	a.found = &found{groups: cfg.Groups, aggregated: cfg.Aggregated.WithSource(aggregated.CRDSource)}
	return a
}

// Run wakes the API when the first definition arrives in this peer's state. It blocks
// until ctx and Life have ended, and all that was started with them.
func (a *API) Run(ctx context.Context) error {
	defer a.running.Wait()
	for ctx.Err() == nil && !a.isAwake() {
		err := a.awaitFirst(ctx)
		if errors.Is(err, raftstore.ErrClosed) {
			break // nothing will arrive any more; whoever closed it will end ctx
		}
		if err != nil && ctx.Err() == nil {
			return err
		}
	}
	<-ctx.Done()
	<-a.cfg.Life.Done()
	return nil
}

// awaitFirst wakes the API if there is a definition, and else returns at the next change
// of one. A watch costs nothing while nothing changes.
func (a *API) awaitFirst(ctx context.Context) error {
	all, err := a.cfg.Store.List(definitionsPrefix, "", 0, 1)
	if err != nil {
		return fmt.Errorf("look for definitions: %w", err)
	}
	if all.Total > 0 {
		_, err := a.wake()
		return err
	}
	w, err := a.cfg.Store.Watch(definitionsPrefix, all.Revision)
	if errors.Is(err, raftstore.ErrCompacted) {
		return nil // the state was replaced in between: look again
	}
	if err != nil {
		return fmt.Errorf("watch definitions: %w", err)
	}
	defer w.Close()
	if _, err := w.Next(ctx); err != nil && !errors.Is(err, raftstore.ErrCompacted) {
		return fmt.Errorf("watch definitions: %w", err)
	}
	return nil
}

func (a *API) isAwake() bool {
	select {
	case <-a.awake:
		return true
	default:
		return false
	}
}

// wake makes what serves definitions, once. It stays: informers cannot be stopped and
// started again.
func (a *API) wake() (*serving, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.serving != nil {
		return a.serving, nil
	}
	s, err := newServing(a.cfg)
	if err != nil {
		return nil, fmt.Errorf("begin to serve custom resources: %w", err)
	}
	a.running.Go(func() { s.informer.RunWithContext(a.cfg.Life) })
	a.serving = s
	close(a.awake)
	a.cfg.Logger.Info("serving custom resources")
	return s, nil
}

// notFound answers as kube-apiserver does for paths that nobody serves.
func notFound(w http.ResponseWriter, r *http.Request) { http.NotFound(w, r) }
