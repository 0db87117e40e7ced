package apiserver

import (
	"context"
	"fmt"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/apis/flowcontrol/bootstrap"
	registry "k8s.io/apiserver/pkg/registry/generic/registry"
	"k8s.io/apiserver/pkg/warning"
	_ "k8s.io/kubernetes/pkg/apis/flowcontrol/install"
	flowschema "k8s.io/kubernetes/pkg/registry/flowcontrol/flowschema/storage"
	priority "k8s.io/kubernetes/pkg/registry/flowcontrol/prioritylevelconfiguration/storage"
)

// flowControl builds the group in which users say whose requests go first. It is
// kept and has no effect, because fairness here (fairness.go) needs no
// configuration: a peer that is asked too much shares itself out by user. Charts
// bring such objects along, so they are taken, with a warning.
//
// Of upstream's own objects there are the mandatory ones, which say what is so
// here too: system:masters wait for nobody, all others are told apart by user.
func (b *builder) flowControl() group {
	schemas, schemasStatus, err := flowschema.NewREST(b.options)
	b.note(err)
	levels, levelsStatus, err := priority.NewREST(b.options)
	b.note(err)
	if b.err != nil {
		return group{}
	}
	warnOfNoEffect(schemas.Store)
	warnOfNoEffect(levels.Store)
	return group{"flowcontrol.apiserver.k8s.io", v1(resources{
		"flowschemas": schemas, "flowschemas/status": schemasStatus,
		"prioritylevelconfigurations": levels, "prioritylevelconfigurations/status": levelsStatus,
	})}
}

func warnOfNoEffect(store *registry.Store) {
	warn := func(ctx context.Context) (registry.FinishFunc, error) {
		warning.AddWarning(ctx, "", "this is kept and has no effect here: requests of system:masters are served at once, all others share a peer by user")
		return func(context.Context, bool) {}, nil
	}
	store.BeginCreate = func(ctx context.Context, obj runtime.Object, _ *metav1.CreateOptions) (registry.FinishFunc, error) {
		if object, err := meta.Accessor(obj); err == nil && isMandatory(object.GetName()) {
			return func(context.Context, bool) {}, nil
		}
		return warn(ctx)
	}
	store.BeginUpdate = func(ctx context.Context, _, _ runtime.Object, _ *metav1.UpdateOptions) (registry.FinishFunc, error) {
		return warn(ctx)
	}
}

// isMandatory tells the names of what bootstrapFlowControl creates; a schema and
// its level have the same one.
func isMandatory(name string) bool {
	for _, schema := range bootstrap.MandatoryFlowSchemas {
		if schema.Name == name {
			return true
		}
	}
	return false
}

func (s *Server) bootstrapFlowControl(ctx context.Context) error {
	levels, schemas := s.client.FlowcontrolV1().PriorityLevelConfigurations(), s.client.FlowcontrolV1().FlowSchemas()
	for _, level := range bootstrap.MandatoryPriorityLevelConfigurations {
		if err := ensure(ctx, level.Name, levels.Get, levels.Create, level); err != nil {
			return fmt.Errorf("create priority level %s: %w", level.Name, err)
		}
	}
	for _, schema := range bootstrap.MandatoryFlowSchemas {
		if err := ensure(ctx, schema.Name, schemas.Get, schemas.Create, schema); err != nil {
			return fmt.Errorf("create flow schema %s: %w", schema.Name, err)
		}
	}
	return nil
}
