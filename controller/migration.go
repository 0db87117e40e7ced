package controller

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	migrationv1 "k8s.io/api/storagemigration/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/restmapper"
	"k8s.io/client-go/tools/cache"
)

const (
	// migrationPage bounds what is in memory of a kind that is migrated.
	migrationPage = 500
	// unknownKind is how long a kind may not be there before its migration fails: a
	// new one is discovered within that time.
	unknownKind = time.Minute
)

// runMigration does what StorageVersionMigrations ask for: it writes every object
// of a resource again, unchanged, so that it is kept in the version that is stored
// now. Upstream's controller takes the objects from the garbage collector's memory;
// this one lists them, as metadata, page by page.
func runMigration(ctx context.Context, e *env) error {
	objects, err := metadata.NewForConfig(e.config)
	if err != nil {
		return fmt.Errorf("make metadata client: %w", err)
	}
	informer := e.Storagemigration().V1().StorageVersionMigrations()
	w := newWaker()
	if err := w.on(informer.Informer()); err != nil {
		return err
	}
	if err := e.synced(ctx, informer.Informer()); err != nil {
		return err
	}
	m := &migrator{e, objects, newMapper(e.client.Discovery())}
	e.loop(ctx, w, nil, tick, func(ctx context.Context) error {
		all, err := informer.Lister().List(labels.Everything())
		if err != nil {
			return fmt.Errorf("list migrations: %w", err)
		}
		var errs []error
		for _, wanted := range all {
			if !meta.IsStatusConditionTrue(wanted.Status.Conditions, string(migrationv1.MigrationSucceeded)) &&
				!meta.IsStatusConditionTrue(wanted.Status.Conditions, string(migrationv1.MigrationFailed)) {
				errs = append(errs, m.migrate(ctx, wanted.DeepCopy()))
			}
		}
		return errors.Join(errs...)
	})
	return nil
}

func migrationsOf(f informers.SharedInformerFactory) cache.SharedIndexInformer {
	return f.Storagemigration().V1().StorageVersionMigrations().Informer()
}

type migrator struct {
	*env
	objects metadata.Interface
	mapper  *restmapper.DeferredDiscoveryRESTMapper
}

func (m *migrator) migrate(ctx context.Context, wanted *migrationv1.StorageVersionMigration) error {
	resource, kind, err := m.find(wanted.Spec.Resource)
	if err != nil {
		if time.Since(wanted.CreationTimestamp.Time) < unknownKind {
			return fmt.Errorf("migrate %s: %w", wanted.Name, err)
		}
		return m.end(ctx, wanted, migrationv1.MigrationFailed, "StorageVersionMigrationFailed", err.Error())
	}
	rewritten, page := 0, metav1.ListOptions{Limit: migrationPage}
	for {
		list, err := m.objects.Resource(resource).List(ctx, page)
		if err != nil {
			return fmt.Errorf("list %s: %w", resource, err)
		}
		if wanted.Status.ResourceVersion == "" {
			wanted.Status.ResourceVersion = list.ResourceVersion
		}
		for i := range list.Items {
			if err := m.rewrite(ctx, resource, kind, &list.Items[i]); err != nil {
				if retryable(err) {
					return err
				}
				return m.end(ctx, wanted, migrationv1.MigrationFailed, "StorageVersionMigrationFailed", err.Error())
			}
			rewritten++
		}
		if page.Continue = list.Continue; page.Continue == "" {
			return m.end(ctx, wanted, migrationv1.MigrationSucceeded, "StorageVersionMigrationSucceeded", fmt.Sprintf("%d objects were looked at", rewritten))
		}
	}
}

// find looks a second time for what is not known: it may be new.
func (m *migrator) find(of metav1.GroupResource) (schema.GroupVersionResource, schema.GroupVersionKind, error) {
	resource, err := m.mapper.ResourceFor(schema.GroupVersionResource{Group: of.Group, Resource: of.Resource})
	if meta.IsNoMatchError(err) {
		m.mapper.Reset()
		resource, err = m.mapper.ResourceFor(schema.GroupVersionResource{Group: of.Group, Resource: of.Resource})
	}
	if err != nil {
		return resource, schema.GroupVersionKind{}, err
	}
	kind, err := m.mapper.KindFor(resource)
	return resource, kind, err
}

// rewrite patches nothing. Whoever changed or removed the object since has done it already.
func (m *migrator) rewrite(ctx context.Context, resource schema.GroupVersionResource, kind schema.GroupVersionKind, object *metav1.PartialObjectMetadata) error {
	nothing := metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{ResourceVersion: object.ResourceVersion, UID: object.UID}}
	nothing.SetGroupVersionKind(kind)
	patch, err := json.Marshal(nothing)
	if err != nil {
		return fmt.Errorf("encode patch: %w", err)
	}
	_, err = m.objects.Resource(resource).Namespace(object.Namespace).Patch(ctx, object.Name, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: "storage-version-migrator-controller"})
	if apierrors.IsConflict(err) || apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("rewrite %s %s/%s: %w", resource.Resource, object.Namespace, object.Name, err)
	}
	return nil
}

// retryable says that an error is of the moment: what is forbidden or invalid stays so.
func retryable(err error) bool {
	return !apierrors.IsForbidden(err) && !apierrors.IsInvalid(err) && !apierrors.IsBadRequest(err) && !apierrors.IsMethodNotSupported(err)
}

func (m *migrator) end(ctx context.Context, wanted *migrationv1.StorageVersionMigration, how migrationv1.MigrationConditionType, reason, message string) error {
	meta.SetStatusCondition(&wanted.Status.Conditions, metav1.Condition{Type: string(how), Status: metav1.ConditionTrue, Reason: reason, Message: message})
	if _, err := m.client.StoragemigrationV1().StorageVersionMigrations().UpdateStatus(ctx, wanted, metav1.UpdateOptions{}); err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("write status of migration %s: %w", wanted.Name, err)
	}
	m.logger.Info("migration ended", "migration", wanted.Name, "resource", wanted.Spec.Resource.String(), "reason", reason, "message", message)
	return nil
}
