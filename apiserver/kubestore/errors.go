package kubestore

import (
	"context"
	"errors"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apiserver/pkg/storage"
	"k8s.io/apiserver/pkg/warning"

	"github.com/rundigitalplatform/rookery/raftstore"
)

// The texts of these errors are Kubernetes' own; clients and tests look for them.
const (
	listExpired  = "The resourceVersion for the provided list is too old."
	watchExpired = "The resourceVersion for the provided watch is too old."

	continueExpired = "The provided continue parameter is too old " +
		"to display a consistent list result. You can start a new list without " +
		"the continue parameter."
	inconsistentContinue = "The provided continue parameter is too old " +
		"to display a consistent list result. You can start a new list without " +
		"the continue parameter, or use the continue token in this response to " +
		"retrieve the remainder of the results. Continuing with the provided " +
		"token results in an inconsistent list - objects that were created, " +
		"modified, or deleted between the time the first chunk was returned " +
		"and now may show up in the list."
)

// retryAfter is what a client is told to wait, in seconds, when this peer is
// behind: an election takes no longer than about that.
const retryAfter = 1

// writeError says in the API's terms why a transaction failed.
func writeError(err error) error {
	switch {
	case errors.Is(err, raftstore.ErrTooLarge):
		return apierrors.NewRequestEntityTooLargeError(fmt.Sprintf("object exceeds the %d MiB that can be stored", raftstore.MaxTxnBytes>>20))
	case errors.Is(err, context.DeadlineExceeded):
		return apierrors.NewTimeoutError("the write was not confirmed in time and may or may not have happened", 0)
	}
	return readError(err)
}

// readError says in the API's terms why the store could not answer. Errors that
// are the API's own already pass through.
func readError(err error) error {
	var noQuorum *raftstore.NoQuorumError
	var future *raftstore.FutureRevisionError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &noQuorum):
		return apierrors.NewServiceUnavailable(noQuorum.Error())
	case errors.Is(err, raftstore.ErrDiskFull):
		return apierrors.NewServiceUnavailable(err.Error())
	case errors.As(err, &future):
		return tooLargeRevision(uint64(future.Asked), future.Current)
	case errors.Is(err, raftstore.ErrClosed):
		return apierrors.NewServiceUnavailable("this peer is shutting down")
	case errors.Is(err, raftstore.ErrCompacted):
		return apierrors.NewResourceExpired(listExpired)
	case errors.Is(err, context.DeadlineExceeded):
		return apierrors.NewTimeoutError("the cluster did not answer in time", 0)
	}
	return err
}

// continueError says that the revision of a continue token is gone, and
// carries a token to go on from start at whatever is the newest revision then.
func continueError(start, prefix string) error {
	token, err := storage.EncodeContinue(start, prefix, -1)
	if err != nil {
		return apierrors.NewResourceExpired(continueExpired)
	}
	expired := apierrors.NewResourceExpired(inconsistentContinue)
	expired.ErrStatus.ListMeta.Continue = token
	return expired
}

func tooLargeRevision(asked uint64, current int64) error {
	return storage.NewTooLargeResourceVersionError(asked, uint64(current), retryAfter)
}

// catchUp makes what is read next linearizable. Without quorum it lets the read
// go on from the local state and warns the client that it did.
func (s *Storage) catchUp(ctx context.Context) error {
	err := s.store.Sync(ctx)
	var noQuorum *raftstore.NoQuorumError
	if errors.As(err, &noQuorum) {
		warning.AddWarning(ctx, "rookery", "answered from this peer's last known state: "+noQuorum.Error())
		return nil
	}
	return readError(err)
}

// awaitLimit bounds the wait for a revision that this peer does not have yet:
// longer than an election, as kube-apiserver's own 3 s.
const awaitLimit = 3 * time.Second

// await returns when this peer has reached rev. One round to the leader settles
// it: a revision that a client can know of was acknowledged before.
func (s *Storage) await(ctx context.Context, rev uint64) error {
	if uint64(s.store.Revision()) >= rev {
		return nil
	}
	syncCtx, cancel := context.WithTimeout(ctx, awaitLimit)
	defer cancel()
	err := s.store.Sync(syncCtx)
	if current := s.store.Revision(); uint64(current) < rev {
		if err != nil && ctx.Err() != nil {
			return readError(err)
		}
		return tooLargeRevision(rev, current)
	}
	return nil
}

// parseRevision reads a client's resource version; "" is 0.
func (s *Storage) parseRevision(rv string) (uint64, error) {
	rev, err := s.versioner.ParseResourceVersion(rv)
	if err != nil {
		return 0, apierrors.NewBadRequest(fmt.Sprintf("invalid resource version: %v", err))
	}
	return rev, nil
}

// freshen makes the local state as new as a read with resource version rv demands.
func (s *Storage) freshen(ctx context.Context, rv string) error {
	if rv == "" {
		return s.catchUp(ctx)
	}
	rev, err := s.parseRevision(rv)
	if err != nil {
		return err
	}
	return s.await(ctx, rev)
}
