// Package kubestore is Kubernetes' storage.Interface over a raftstore.Store:
// it turns API objects into keys and bytes, and revisions into resource
// versions, with the semantics that the registries expect of etcd.
//
// It leaves replication, history and expiry to raftstore, and everything above
// bytes and keys (defaults, validation, strategies, patch) to the registries of
// k8s.io/kubernetes. It is called by package apiserver, once a resource.
//
// # Freshness
//
// A read with no resource version is linearizable: it asks the store to catch up
// with everything acknowledged before. Without quorum it is answered from this
// peer's own state, with a warning to the client. A read with resource version 0
// is always local, one with another version waits until this peer has it.
// Writes start from a local read and rely on the compare-and-set, so that they
// cost one trip to the leader; whatever a possibly stale read makes them refuse
// is confirmed against the newest state before it is told to the client.
//
// # Sharing
//
// A decoded object lives beside its bytes (raftstore.KV.Memo). Lists and watches
// hand out copies of the top level struct that share what its maps, slices and
// pointers lead to, exactly as Kubernetes' watch cache does: readers may
// assign fields but never write through a reference. Get, GuaranteedUpdate and
// Delete give each caller an object of its own.
package kubestore

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/storage"
	"k8s.io/apiserver/pkg/storage/value"

	"github.com/rundigitalplatform/rookery/raftstore"
)

// DefaultBookmarkInterval is how often a watch that asked for bookmarks gets
// one: a minute, as from kube-apiserver, so that a client that reconnects later
// need not list again although nothing it watches has changed.
const DefaultBookmarkInterval = time.Minute

// Config describes one resource. It is copied by [New].
type Config struct {
	// Codec encodes to the version that is stored and decodes to the internal one.
	Codec runtime.Codec
	// NewFunc returns an empty object of the resource, NewListFunc of its list.
	NewFunc, NewListFunc func() runtime.Object
	// ResourcePrefix is what all keys of the resource begin with, for example
	// "/registry/core/pods". It begins with a slash.
	ResourcePrefix string
	// GroupResource names the resource in errors.
	GroupResource schema.GroupResource
	// Transformer encrypts the bytes at rest; nil stores them as encoded. With a
	// transformer nothing decoded is kept.
	Transformer value.Transformer
	// Uncached keeps no decoded objects, for a resource that is big and seldom
	// read, such as events.
	Uncached bool
	// BookmarkInterval is the time between two bookmarks of a watch; 0 means
	// [DefaultBookmarkInterval].
	BookmarkInterval time.Duration
}

// Storage is a storage.Interface for one resource. All methods may be called
// concurrently. It starts nothing by itself; a watch lives until its context
// ends or it is stopped.
type Storage struct {
	store       raftstore.Store
	codec       runtime.Codec
	newFunc     func() runtime.Object
	objType     reflect.Type // of what newFunc returns
	self        *reader
	prefix      string
	gr          schema.GroupResource
	transformer value.Transformer
	versioner   storage.APIObjectVersioner
	bookmarks   time.Duration
	uncached    bool
	sizes       atomic.Bool

	superseded supersededObjects

	open  context.Context // ends with Close
	close context.CancelFunc

	mu       sync.Mutex
	watchers map[*watcher]struct{} // those that want bookmarks
}

var _ storage.Interface = (*Storage)(nil)

// New returns the storage of the resource that cfg describes. It has no side effects.
func New(store raftstore.Store, cfg Config) (*Storage, error) {
	switch {
	case cfg.Codec == nil || cfg.NewFunc == nil || cfg.NewListFunc == nil:
		return nil, fmt.Errorf("open storage of %s: codec and constructors are required", cfg.GroupResource)
	case !strings.HasPrefix(cfg.ResourcePrefix, "/") || cfg.ResourcePrefix == "/":
		return nil, fmt.Errorf("open storage of %s: resource prefix %q must begin with a slash and name something", cfg.GroupResource, cfg.ResourcePrefix)
	}
	// A prefix that ends in a slash cannot be mistaken for the beginning of
	// another resource's name ("/registry/core/pods" and ".../podtemplates").
	if !strings.HasSuffix(cfg.ResourcePrefix, "/") {
		cfg.ResourcePrefix += "/"
	}
	s := &Storage{
		store:     store,
		codec:     cfg.Codec,
		newFunc:   cfg.NewFunc,
		objType:   reflect.TypeOf(cfg.NewFunc()),
		self:      &reader{},
		prefix:    cfg.ResourcePrefix,
		gr:        cfg.GroupResource,
		bookmarks: cfg.BookmarkInterval,
		uncached:  cfg.Uncached,
		watchers:  map[*watcher]struct{}{},
	}
	s.open, s.close = context.WithCancel(context.Background())
	if s.bookmarks <= 0 {
		s.bookmarks = DefaultBookmarkInterval
	}
	if cfg.Transformer != nil {
		s.transformer = corruptTransformer{cfg.Transformer}
	}
	return s, nil
}

// Close ends all watches: the kind is not decoded like this any more, and clients begin
// anew where they were. Everything else goes on working. It may be called more than once.
func (s *Storage) Close() { s.close() }

// Versioner implements storage.Interface.
func (s *Storage) Versioner() storage.Versioner { return s.versioner }

// ReadinessCheck implements storage.Interface. A store that exists can be read.
func (s *Storage) ReadinessCheck() error { return nil }

// CompactRevision implements storage.Interface in etcd's terms: the oldest
// revision that can still be read, 0 as long as all can.
func (s *Storage) CompactRevision() int64 {
	if gone := s.store.CompactRevision(); gone > 0 {
		return gone + 1
	}
	return 0
}

// GetCurrentResourceVersion implements storage.Interface. Like any default read
// it is linearizable, and local without quorum.
func (s *Storage) GetCurrentResourceVersion(ctx context.Context) (uint64, error) {
	if err := s.catchUp(ctx); err != nil {
		return 0, err
	}
	return uint64(s.store.Revision()), nil
}

// EnableResourceSizeEstimation implements storage.Interface: from now on Stats
// tells the average size too. Sizes are exact and read from the local state, so keys
// is not called.
func (s *Storage) EnableResourceSizeEstimation(keys storage.KeysFunc) error {
	if keys == nil {
		return errors.New("KeysFunc cannot be nil")
	}
	if s.sizes.Swap(true) {
		return errors.New("resource size estimation is already enabled")
	}
	return nil
}

// Stats implements storage.Interface, from the local state.
func (s *Storage) Stats(context.Context) (storage.Stats, error) {
	limit := 1 // counting reads no values
	if s.sizes.Load() {
		limit = 0
	}
	page, err := s.store.List(s.prefix, "", 0, limit)
	if err != nil {
		return storage.Stats{}, readError(err)
	}
	stats := storage.Stats{ObjectCount: page.Total}
	if s.sizes.Load() && len(page.KVs) > 0 {
		var sum int64
		for _, kv := range page.KVs {
			sum += int64(len(kv.Value))
		}
		stats.EstimatedAverageObjectSizeBytes = sum / int64(len(page.KVs))
	}
	return stats, nil
}
