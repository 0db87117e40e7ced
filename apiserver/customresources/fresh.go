package customresources

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"k8s.io/apiextensions-apiserver/pkg/apihelpers"
	definitionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	listers "k8s.io/apiextensions-apiserver/pkg/client/listers/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apiserver/pkg/warning"

	"github.com/rundigitalplatform/rookery/raftstore"
)

// A definition that was acknowledged anywhere is served here: a request that would fail for
// want of one waits until this peer's state is as new as the cluster's, and until the informer
// has what is in the state. Upstream lets every creation in a definition's first two
// seconds, and each Established, wait a fixed time instead.

const (
	// syncLimit bounds the wait for the leader. An island answers from what it has.
	syncLimit = 2 * time.Second
	// informerLimit bounds the wait for this process's own informer, which is milliseconds behind.
	informerLimit = 5 * time.Second
	informerPoll  = 2 * time.Millisecond
	// justEstablished is within which upstream's handler lets a creation sleep.
	justEstablished = 3 * time.Second
)

// catchUp makes this peer's state as new as the cluster's. Without quorum it warns, as
// every read does.
func (a *API) catchUp(ctx context.Context) error {
	limited, cancel := context.WithTimeout(ctx, syncLimit)
	defer cancel()
	err := a.cfg.Store.Sync(limited)
	var missing *raftstore.NoQuorumError
	if errors.As(err, &missing) {
		warning.AddWarning(ctx, "rookery", "answered from this peer's last known state: "+missing.Error())
		return nil
	}
	if err != nil {
		return apierrors.NewServiceUnavailable(fmt.Sprintf("look for new definitions: %v", err))
	}
	return nil
}

// find returns what serves a version of the definition of that name, nil if nobody does.
func (a *API) find(ctx context.Context, name, version string) (*serving, error) {
	for _, fresh := range []bool{false, true} {
		if fresh {
			if err := a.catchUp(ctx); err != nil {
				return nil, err
			}
		}
		kv, _ := a.cfg.Store.Get(definitionsPrefix + name)
		if kv == nil {
			continue
		}
		s, err := a.wake()
		if err != nil {
			return nil, err
		}
		crd, err := a.await(ctx, s, kv, time.Now().Add(informerLimit))
		if err != nil {
			return nil, err
		}
		if crd != nil && isServed(crd, version) {
			return s, nil
		}
	}
	return nil, nil
}

// isServed tells whether upstream's handler takes requests for a version.
func isServed(crd *definitionsv1.CustomResourceDefinition, version string) bool {
	return apihelpers.HasServedCRDVersion(crd, version) &&
		(apihelpers.IsCRDConditionTrue(crd, definitionsv1.NamesAccepted) || apihelpers.IsCRDConditionTrue(crd, definitionsv1.Established))
}

// established returns all definitions that are served as of this request, nil if there are none.
func (a *API) established(ctx context.Context) ([]*definitionsv1.CustomResourceDefinition, error) {
	if err := a.catchUp(ctx); err != nil {
		return nil, err
	}
	all, err := a.cfg.Store.List(definitionsPrefix, "", 0, 0)
	if err != nil {
		return nil, fmt.Errorf("list definitions: %w", err)
	}
	if all.Total == 0 {
		return nil, nil
	}
	s, err := a.wake()
	if err != nil {
		return nil, err
	}
	var out []*definitionsv1.CustomResourceDefinition
	deadline := time.Now().Add(informerLimit)
	for _, kv := range all.KVs {
		crd, err := a.await(ctx, s, kv, deadline)
		if err != nil && (crd == nil || ctx.Err() != nil) {
			// To leave it out would mean that its objects outlive their namespaces.
			return nil, err
		}
		if err != nil {
			a.cfg.Logger.Warn("a definition is shown as it was", "key", kv.Key, "err", err)
		}
		if crd != nil && apihelpers.IsCRDConditionTrue(crd, definitionsv1.Established) && !a.cfg.BuiltIn(crd.Spec.Group) {
			out = append(out, crd)
		}
	}
	return out, nil
}

// await returns a definition when the informer has it as of kv or newer; nil if it was
// deleted. After the deadline it is what the informer has, if anything, and an error.
func (a *API) await(ctx context.Context, s *serving, kv *raftstore.KV, deadline time.Time) (*definitionsv1.CustomResourceDefinition, error) {
	name := strings.TrimPrefix(kv.Key, definitionsPrefix)
	for {
		crd, err := s.lister.Get(name)
		if err == nil && isAsNewAs(crd.ResourceVersion, kv.ModRevision) {
			return crd, nil
		}
		if now, _ := a.cfg.Store.Get(kv.Key); now == nil {
			return nil, nil
		}
		if time.Now().After(deadline) {
			return crd, apierrors.NewServiceUnavailable("this peer has not read the newest definition of " + name + " yet, please try again")
		}
		select {
		case <-ctx.Done():
			return nil, apierrors.NewTimeoutError("the request ended before this peer had read the definition of "+name, 1)
		case <-time.After(informerPoll):
		}
	}
}

func isAsNewAs(resourceVersion string, revision int64) bool {
	rv, err := strconv.ParseInt(resourceVersion, 10, 64)
	return err == nil && rv >= revision
}

// settledLister shows upstream's handler definitions that were established a while ago:
// what it would sleep for is certain here, see above.
type settledLister struct {
	listers.CustomResourceDefinitionLister
}

func (l settledLister) Get(name string) (*definitionsv1.CustomResourceDefinition, error) {
	crd, err := l.CustomResourceDefinitionLister.Get(name)
	if err != nil {
		return nil, err
	}
	return settled(crd), nil
}

func (l settledLister) List(s labels.Selector) ([]*definitionsv1.CustomResourceDefinition, error) {
	return l.CustomResourceDefinitionLister.List(s)
}

func settled(crd *definitionsv1.CustomResourceDefinition) *definitionsv1.CustomResourceDefinition {
	c := apihelpers.FindCRDCondition(crd, definitionsv1.Established)
	if c == nil || time.Since(c.LastTransitionTime.Time) > justEstablished {
		return crd
	}
	older := *crd // what it refers to stays shared, but for the conditions
	older.Status.Conditions = append([]definitionsv1.CustomResourceDefinitionCondition(nil), crd.Status.Conditions...)
	apihelpers.FindCRDCondition(&older, definitionsv1.Established).LastTransitionTime = metav1.NewTime(time.Now().Add(-justEstablished))
	return &older
}
