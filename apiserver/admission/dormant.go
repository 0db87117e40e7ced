package admission

import (
	"context"
	"fmt"
	"sync"

	"k8s.io/apiserver/pkg/admission"
)

// dormant is an admission plugin that is made by the first request it has
// something to do for. Kubernetes' own makes informers, and those with
// expressions environments of tens of megabytes, at once; most clusters never
// use them.
//
// The request that wakes it waits until it is ready, as at the start of
// kube-apiserver. It does not fall asleep again: informers cannot be stopped.
type dormant struct {
	name string
	// due tells whether there is something to do for a request. Its error refuses the request.
	due func(context.Context, admission.Attributes) (bool, error)
	// wake makes the plugin and starts what it needs. What failed is tried again by the next request.
	wake func() (admission.Interface, error)

	mu     sync.Mutex
	plugin admission.Interface // nil: asleep
}

// Handles implements [admission.Interface]. The plugin itself knows better once it is awake.
func (d *dormant) Handles(admission.Operation) bool { return true }

// Admit implements [admission.MutationInterface].
func (d *dormant) Admit(ctx context.Context, a admission.Attributes, o admission.ObjectInterfaces) error {
	p, err := d.forRequest(ctx, a)
	if mutates, ok := p.(admission.MutationInterface); ok && err == nil {
		return mutates.Admit(ctx, a, o)
	}
	return err
}

// Validate implements [admission.ValidationInterface].
func (d *dormant) Validate(ctx context.Context, a admission.Attributes, o admission.ObjectInterfaces) error {
	p, err := d.forRequest(ctx, a)
	if validates, ok := p.(admission.ValidationInterface); ok && err == nil {
		return validates.Validate(ctx, a, o)
	}
	return err
}

// forRequest returns the plugin, nil when it has nothing to do for a.
func (d *dormant) forRequest(ctx context.Context, a admission.Attributes) (admission.Interface, error) {
	due, err := d.due(ctx, a)
	if err != nil || !due {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.plugin == nil {
		if d.plugin, err = d.wake(); err != nil {
			d.plugin = nil
			return nil, fmt.Errorf("start admission plugin %s, please try again: %w", d.name, err)
		}
	}
	if !d.plugin.Handles(a.GetOperation()) {
		return nil, nil
	}
	return d.plugin, nil
}
