// Package aggregation serves the APIs of extension servers: an APIService
// (apiregistration.k8s.io/v1) that names a Service makes a group version part of the
// API, and requests for it go to that Service, with the name of whoever asks.
//
// It follows the stored APIServices on every peer. Without one that names a Service it
// holds a watch of the store and nothing else: no certificate, no connection, no
// informer; and it asks extension servers what they serve only when a client asks for
// discovery or documents. Whether they answer is found out by the leader
// ([Aggregator.WatchAvailability]), in one place for all.
//
// The registry, the validation and the availability controller are kube-aggregator's;
// its server is not used, because it needs Kubernetes' generic one. It leaves
// authentication and authorization to the filters in front of it, and is composed by
// apiserver. docs/design/aggregation.md explains it.
package aggregation

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/singleflight"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/endpoints/discovery/aggregated"
	clientrest "k8s.io/client-go/rest"

	"github.com/rundigitalplatform/rookery/raftstore"
)

// Store is what is followed of the cluster's state.
type Store interface {
	List(prefix, start string, at int64, limit int) (raftstore.ListResult, error)
	Watch(prefix string, from int64) (*raftstore.Watcher, error)
}

// Resolver finds the address of a Service's port as a base URL.
type Resolver interface {
	ResolveEndpoint(namespace, name string, port int32) (*url.URL, error)
}

// Groups is the list of groups at /apis in its old form.
type Groups interface {
	// Set says which versions of a group extension servers serve, the preferred one first; none:
	// no more of the group.
	Set(group string, versions ...string)
	// Group is what anybody serves of a group, as it is told to who asked; nil: nothing.
	Group(r *http.Request, name string) (*metav1.APIGroup, error)
}

// FrontProxy is what the API shows to extension servers, in PEM.
type FrontProxy struct {
	// Cert and Key are shown as client certificate; its CN is Name.
	Cert, Key []byte
	Name      string
	// CA signs Cert. Whoever has a certificate of it with that name is believed in whom
	// he names, so it must sign nothing else.
	CA []byte
	// ClientCA signs the certificates of the API's own users.
	ClientCA []byte
}

// Config says what an [Aggregator] follows and where it tells of what it found. All
// fields but FrontProxy are required.
type Config struct {
	Store  Store
	Prefix string // of the keys of stored APIServices, with the last slash
	Scheme *runtime.Scheme
	// Builtin are the group versions that the API serves itself; true: an APIService
	// may take its place, for as long as it is available.
	Builtin    map[schema.GroupVersion]bool
	FrontProxy func() (FrontProxy, error) // called once, when it is needed; nil: nothing can be forwarded
	Resolver   Resolver
	Discovery  aggregated.ResourceManager
	Groups     Groups
	Codecs     runtime.NegotiatedSerializer
	Fail       func(http.ResponseWriter, *http.Request, error) // answers with an error's Status
	Client     *clientrest.Config                              // of the API, of an administrator
	Logger     *slog.Logger
}

// Aggregator knows the APIs of extension servers. Its methods may be called concurrently.
type Aggregator struct {
	cfg    Config
	decode runtime.Decoder
	proof  func() (FrontProxy, error) // once

	table  atomic.Pointer[table] // replaced, never changed
	asking singleflight.Group    // of extension servers, by APIService

	mu    sync.Mutex    // makes a new table and what is told of it one step
	first chan struct{} // closed with the first table that is not empty
	woken bool
}

// New makes an Aggregator that knows of nothing yet. It has no side effects.
func New(cfg Config) *Aggregator {
	proof := cfg.FrontProxy
	if proof == nil {
		proof = func() (FrontProxy, error) {
			return FrontProxy{}, errors.New("this peer has no certificate to show to it")
		}
	}
	a := &Aggregator{cfg: cfg, decode: decoder(cfg.Scheme), proof: sync.OnceValues(proof), first: make(chan struct{})}
	a.table.Store(&table{})
	return a
}

// again is how long a follower waits after an error that should not be.
const again = time.Second

// Load reads the stored APIServices. Until then the API must not be said to be ready: to
// a garbage collector a group that is not known yet would be one that is gone.
func (a *Aggregator) Load() error {
	_, err := a.load()
	return err
}

func (a *Aggregator) load() (revision int64, err error) {
	all, err := a.cfg.Store.List(a.cfg.Prefix, "", 0, 0)
	if err != nil {
		return 0, fmt.Errorf("list APIServices: %w", err)
	}
	a.apply(all.KVs)
	return all.Revision, nil
}

// Run follows the stored APIServices until ctx ends.
func (a *Aggregator) Run(ctx context.Context) {
	for ctx.Err() == nil {
		err := a.follow(ctx)
		if ctx.Err() != nil || errors.Is(err, raftstore.ErrClosed) {
			return
		}
		if errors.Is(err, raftstore.ErrCompacted) {
			continue // a snapshot has replaced the state: read it anew
		}
		a.cfg.Logger.Error("following APIServices failed, beginning again", "err", err)
		select {
		case <-ctx.Done():
		case <-time.After(again):
		}
	}
}

// follow reads all of them at each change: they are few, and so is what happens to them.
func (a *Aggregator) follow(ctx context.Context) error {
	revision, err := a.load()
	if err != nil {
		return err
	}
	w, err := a.cfg.Store.Watch(a.cfg.Prefix, revision)
	if err != nil {
		return fmt.Errorf("watch APIServices: %w", err)
	}
	defer w.Close()
	for {
		if _, err := w.Next(ctx); err != nil {
			return err
		}
		if _, err := a.load(); err != nil {
			return err
		}
	}
}
