package customresources

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"k8s.io/apiextensions-apiserver/pkg/apihelpers"
	definitionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/tools/cache"
)

// registerAgain is after which time a failed [Config.Register] is called again.
const registerAgain = 5 * time.Second

// keepRegistered calls [Config.Register] at each change of definitions until ctx ends.
func (a *API) keepRegistered(ctx context.Context, running *sync.WaitGroup, s *serving, term *termInformer) error {
	changed := make(chan struct{}, 1)
	kick := func(any) {
		select {
		case changed <- struct{}{}:
		default:
		}
	}
	handle, err := term.AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: kick, UpdateFunc: func(_, obj any) { kick(obj) }, DeleteFunc: kick})
	if err != nil {
		return fmt.Errorf("watch definitions: %w", err)
	}
	running.Go(func() {
		if !cache.WaitForCacheSync(ctx.Done(), handle.HasSynced) {
			return
		}
		told := ""
		for {
			defined, err := a.defined(s)
			if state := fmt.Sprint(defined); err == nil && state != told {
				if err = a.cfg.Register(ctx, defined); err == nil {
					told = state
				}
			}
			var again <-chan time.Time
			if err != nil && ctx.Err() == nil {
				a.cfg.Logger.Warn("register what is defined", "err", err)
				again = time.After(registerAgain)
			}
			select {
			case <-ctx.Done():
				return
			case <-changed:
			case <-again:
			}
		}
	})
	return nil
}

// defined are the group versions that are served for definitions, in the order of their names.
func (a *API) defined(s *serving) ([]schema.GroupVersion, error) {
	all, err := s.lister.List(labels.Everything())
	if err != nil {
		return nil, fmt.Errorf("list definitions: %w", err)
	}
	byGroup := map[string][]*definitionsv1.CustomResourceDefinition{}
	for _, crd := range all {
		if apihelpers.IsCRDConditionTrue(crd, definitionsv1.Established) && !a.cfg.BuiltIn(crd.Spec.Group) {
			byGroup[crd.Spec.Group] = append(byGroup[crd.Spec.Group], crd)
		}
	}
	var out []schema.GroupVersion
	for _, group := range slices.Sorted(maps.Keys(byGroup)) {
		for _, v := range versionsOf(byGroup[group]) {
			out = append(out, schema.GroupVersion{Group: group, Version: v})
		}
	}
	return out, nil
}
