package controller

// The group accessors of a [Term] build on it instead of on the factory within,
// so that every typed informer goes through [Term.InformerFor].

import (
	"k8s.io/client-go/informers/admissionregistration"
	"k8s.io/client-go/informers/apiserverinternal"
	"k8s.io/client-go/informers/apps"
	"k8s.io/client-go/informers/autoscaling"
	"k8s.io/client-go/informers/batch"
	"k8s.io/client-go/informers/certificates"
	"k8s.io/client-go/informers/coordination"
	"k8s.io/client-go/informers/core"
	"k8s.io/client-go/informers/discovery"
	"k8s.io/client-go/informers/events"
	"k8s.io/client-go/informers/extensions"
	"k8s.io/client-go/informers/flowcontrol"
	"k8s.io/client-go/informers/lifecycle"
	"k8s.io/client-go/informers/networking"
	"k8s.io/client-go/informers/node"
	"k8s.io/client-go/informers/policy"
	"k8s.io/client-go/informers/rbac"
	"k8s.io/client-go/informers/resource"
	"k8s.io/client-go/informers/scheduling"
	"k8s.io/client-go/informers/storage"
	"k8s.io/client-go/informers/storagemigration"
)

func (t *Term) Admissionregistration() admissionregistration.Interface {
	return admissionregistration.New(t, all, nil)
}
func (t *Term) Internal() apiserverinternal.Interface { return apiserverinternal.New(t, all, nil) }
func (t *Term) Apps() apps.Interface                  { return apps.New(t, all, nil) }
func (t *Term) Autoscaling() autoscaling.Interface    { return autoscaling.New(t, all, nil) }
func (t *Term) Batch() batch.Interface                { return batch.New(t, all, nil) }
func (t *Term) Certificates() certificates.Interface  { return certificates.New(t, all, nil) }
func (t *Term) Coordination() coordination.Interface  { return coordination.New(t, all, nil) }
func (t *Term) Core() core.Interface                  { return core.New(t, all, nil) }
func (t *Term) Discovery() discovery.Interface        { return discovery.New(t, all, nil) }
func (t *Term) Events() events.Interface              { return events.New(t, all, nil) }
func (t *Term) Extensions() extensions.Interface      { return extensions.New(t, all, nil) }
func (t *Term) Flowcontrol() flowcontrol.Interface    { return flowcontrol.New(t, all, nil) }
func (t *Term) Lifecycle() lifecycle.Interface        { return lifecycle.New(t, all, nil) }
func (t *Term) Networking() networking.Interface      { return networking.New(t, all, nil) }
func (t *Term) Node() node.Interface                  { return node.New(t, all, nil) }
func (t *Term) Policy() policy.Interface              { return policy.New(t, all, nil) }
func (t *Term) Rbac() rbac.Interface                  { return rbac.New(t, all, nil) }
func (t *Term) Resource() resource.Interface          { return resource.New(t, all, nil) }
func (t *Term) Scheduling() scheduling.Interface      { return scheduling.New(t, all, nil) }
func (t *Term) Storage() storage.Interface            { return storage.New(t, all, nil) }
func (t *Term) Storagemigration() storagemigration.Interface {
	return storagemigration.New(t, all, nil)
}
