package cluster

import (
	"context"
	"fmt"

	"github.com/rundigitalplatform/rookery/raftstore"
)

// BackendKey is the store's key of the network backend, once it was changed.
const BackendKey = "/rookery/network-backend"

// Backend is how packets travel between peers: what the cluster was made with, or what
// was set since. It reads the local state.
func (r *Registry) Backend() string {
	if kv, _ := r.store.Get(BackendKey); kv != nil {
		return string(kv.Value)
	}
	return r.settings.Backend
}

// SetBackend changes it for all peers, which follow as they hear of it. The caller has
// made sure that there is such a backend.
func (r *Registry) SetBackend(ctx context.Context, kind string) error {
	_, err := r.store.Txn(ctx, raftstore.Txn{{Key: BackendKey, If: raftstore.Any, Kind: raftstore.Put, Value: []byte(kind)}})
	if err != nil {
		return fmt.Errorf("set the network backend: %w", err)
	}
	return nil
}
