package aggregation

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	typedv1 "k8s.io/client-go/kubernetes/typed/core/v1"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
	"k8s.io/kube-aggregator/pkg/client/clientset_generated/clientset"
)

const (
	// managed is upstream's label of the APIServices that the cluster writes itself.
	managed        = "kube-aggregator.kubernetes.io/automanaged"
	managedOnStart = "onstart" // of built-in groups
	managedAlways  = "true"    // of what users define
	// BuiltinPriority is that of a built-in group, by which clients choose among kinds of
	// the same name: upstream's are near it too, and extensions' far below.
	BuiltinPriority = 17500
	// BuiltinVersionPriority is that of a built-in version in its group.
	BuiltinVersionPriority = 15
	corePriority           = 18000
	// Upstream's priorities of what users define.
	definedPriority        = 1000
	definedVersionPriority = 100

	trustNamespace = metav1.NamespaceSystem
	trustName      = "extension-apiserver-authentication"
)

// Bootstrap writes what extension servers and their installers look for: how to know
// the API's requests, and an APIService for each built-in group version. The leader
// calls it at the start of its term; what is there already is not written.
func (a *Aggregator) Bootstrap(ctx context.Context, core typedv1.ConfigMapsGetter) error {
	if err := a.bootstrapTrust(ctx, core.ConfigMaps(trustNamespace)); err != nil {
		return fmt.Errorf("write ConfigMap %s/%s: %w", trustNamespace, trustName, err)
	}
	if err := a.bootstrapLocal(ctx); err != nil {
		return fmt.Errorf("write APIServices of built-in groups: %w", err)
	}
	return nil
}

// bootstrapLocal stores them, as upstream does: whoever lists, watches, patches or waits
// for APIServices finds objects like any other. One that may be replaced gets none,
// because its name belongs to whoever installs the replacement.
func (a *Aggregator) bootstrapLocal(ctx context.Context) error {
	wanted := map[string]*apiregistrationv1.APIService{}
	for gv, replaceable := range a.cfg.Builtin {
		if !replaceable && gv.Group != apiregistrationv1.GroupName { // upstream leaves that one out too
			s := local(gv)
			wanted[s.Name] = s
		}
	}
	return a.keep(ctx, managedOnStart, wanted)
}

// Register stores a local APIService for each of these group versions, which users have
// defined, and removes those of definitions that are gone, as upstream does. One that
// somebody else has made stays as it is. For the leader.
func (a *Aggregator) Register(ctx context.Context, defined []schema.GroupVersion) error {
	wanted := map[string]*apiregistrationv1.APIService{}
	for _, gv := range defined {
		s := local(gv)
		s.Labels[managed] = managedAlways
		s.Spec.GroupPriorityMinimum, s.Spec.VersionPriority = definedPriority, definedVersionPriority
		wanted[s.Name] = s
	}
	return a.keep(ctx, managedAlways, wanted)
}

// keep makes the local APIServices with that label the wanted ones.
func (a *Aggregator) keep(ctx context.Context, label string, wanted map[string]*apiregistrationv1.APIService) error {
	client, err := clientset.NewForConfig(a.cfg.Client)
	if err != nil {
		return err
	}
	services := client.ApiregistrationV1().APIServices()
	there, err := services.List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	for _, s := range there.Items {
		if wanted[s.Name] == nil && s.Spec.Service == nil && s.Labels[managed] == label {
			if err := services.Delete(ctx, s.Name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
				return err
			}
		}
		delete(wanted, s.Name)
	}
	for _, s := range wanted {
		if _, err := services.Create(ctx, s, metav1.CreateOptions{}); err != nil && !apierrors.IsAlreadyExists(err) {
			return err
		}
	}
	return nil
}

func local(gv schema.GroupVersion) *apiregistrationv1.APIService {
	group := int32(BuiltinPriority)
	if gv.Group == "" {
		group = corePriority
	}
	return &apiregistrationv1.APIService{
		ObjectMeta: metav1.ObjectMeta{Name: gv.Version + "." + gv.Group, Labels: map[string]string{managed: managedOnStart}},
		Spec:       apiregistrationv1.APIServiceSpec{Group: gv.Group, Version: gv.Version, GroupPriorityMinimum: group, VersionPriority: BuiltinVersionPriority},
	}
}

// bootstrapTrust writes the ConfigMap by which extension servers know the API. It is there
// before the first of them, which would not start without it. Keys of others stay.
func (a *Aggregator) bootstrapTrust(ctx context.Context, all typedv1.ConfigMapInterface) error {
	if a.cfg.FrontProxy == nil {
		return nil
	}
	proof, err := a.proof()
	if err != nil {
		return err
	}
	data, err := trust(proof)
	if err != nil {
		return err
	}
	there, err := all.Get(ctx, trustName, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		_, err = all.Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: trustName}, Data: data}, metav1.CreateOptions{})
		if apierrors.IsAlreadyExists(err) {
			return nil // another leader, which says the same
		}
		return err
	}
	if err != nil {
		return err
	}
	next := maps.Clone(there.Data)
	if next == nil {
		next = map[string]string{}
	}
	maps.Copy(next, data)
	if maps.Equal(next, there.Data) {
		return nil
	}
	there.Data = next
	_, err = all.Update(ctx, there, metav1.UpdateOptions{})
	return err
}

// trust is the ConfigMap's content, in the keys that k8s.io/apiserver reads.
func trust(p FrontProxy) (map[string]string, error) {
	data := map[string]string{"client-ca-file": string(p.ClientCA), "requestheader-client-ca-file": string(p.CA)}
	for key, value := range map[string]string{
		"requestheader-allowed-names":        p.Name,
		"requestheader-username-headers":     "X-Remote-User",
		"requestheader-uid-headers":          "X-Remote-Uid",
		"requestheader-group-headers":        "X-Remote-Group",
		"requestheader-extra-headers-prefix": "X-Remote-Extra-",
	} {
		list, err := json.Marshal([]string{value})
		if err != nil {
			return nil, err
		}
		data[key] = string(list)
	}
	return data, nil
}
