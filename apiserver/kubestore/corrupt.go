package kubestore

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/features"
	"k8s.io/apiserver/pkg/storage"
	"k8s.io/apiserver/pkg/storage/value"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
)

// corruptObjectError says that the bytes of a key are no object of its resource.
// The unsafe deletion of the API is allowed for exactly these.
type corruptObjectError struct {
	err      error
	kind     string
	revision int64
}

const (
	untransformable = "data from the storage is not transformable"
	undecodable     = "object not decodable"
)

func (e *corruptObjectError) Error() string {
	return fmt.Sprintf("%s revision=%d: %v", e.kind, e.revision, e.err)
}
func (e *corruptObjectError) Unwrap() error { return e.err }

// corruptTransformer marks what its transformer cannot read as corrupt.
type corruptTransformer struct{ value.Transformer }

func (t corruptTransformer) TransformFromStorage(ctx context.Context, data []byte, dataCtx value.Context) ([]byte, bool, error) {
	out, stale, err := t.Transformer.TransformFromStorage(ctx, data, dataCtx)
	if err != nil {
		err = &corruptObjectError{err: err, kind: untransformable}
	}
	return out, stale, err
}

func transformFailed(key string, err error) error {
	return storage.NewInternalError(fmt.Errorf("unable to transform key %q: %w", key, err))
}

func decodeFailed(key string, err error) error {
	return storage.NewInternalError(fmt.Errorf("unable to decode key %q: %w", key, err))
}

// unsafeDeletion says whether an administrator may delete corrupt objects, and so
// whether reads have to tell which objects are corrupt.
func unsafeDeletion() bool {
	return utilfeature.DefaultFeatureGate.Enabled(features.AllowUnsafeMalformedObjectDeletion)
}

// getError marks err so that the registry offers the unsafe deletion, if it is about a
// corrupt object.
func getError(key string, err error) error {
	var corrupt *corruptObjectError
	if unsafeDeletion() && errors.As(err, &corrupt) {
		return storage.NewCorruptObjError(key, corrupt)
	}
	return err
}

// maxCorruptListed bounds how many corrupt objects one list tells of.
const maxCorruptListed = 100

var errTooMany = errors.New("too many errors, the list is truncated")

// corruptObjects gathers the corrupt objects that a list meets, so that one
// request tells an administrator all of them.
type corruptObjects struct {
	keys  []string
	errs  []error
	abort error
}

// add takes the error of one key. It returns false when the list must stop there.
func (c *corruptObjects) add(key string, err error) bool {
	var corrupt *corruptObjectError
	if !unsafeDeletion() || !errors.As(err, &corrupt) {
		c.abort = err
		return false
	}
	c.keys = append(c.keys, key)
	c.errs = append(c.errs, storage.NewCorruptObjError(key, corrupt))
	if len(c.errs) >= maxCorruptListed {
		c.abort = errTooMany
		return false
	}
	return true
}

// err returns what the list has to fail with, nil if all objects were sound.
func (c *corruptObjects) err(gr schema.GroupResource) error {
	if len(c.errs) == 0 {
		return c.abort
	}
	details := &metav1.StatusDetails{Group: gr.Group, Kind: gr.Resource, Name: "list"}
	cause := func(t metav1.CauseType, field, message string) {
		details.Causes = append(details.Causes, metav1.StatusCause{Type: t, Field: field, Message: message})
	}
	for i, err := range c.errs {
		cause(metav1.CauseTypeUnexpectedServerResponse, c.keys[i], err.Error())
	}
	switch {
	case errors.Is(c.abort, errTooMany):
		cause(metav1.CauseTypeTooMany, "", errTooMany.Error())
	case c.abort != nil:
		cause(metav1.CauseTypeUnexpectedServerResponse, "", c.abort.Error())
	}
	message := fmt.Sprintf("failed to read one or more %s from the storage: %v", gr.String(), c.errs[0])
	if more := len(c.errs) - 1; more > 0 {
		message = fmt.Sprintf("%s (and %d more)", message, more)
	}
	return storeReadError(message, details)
}

func storeReadError(message string, details *metav1.StatusDetails) *apierrors.StatusError {
	return &apierrors.StatusError{ErrStatus: metav1.Status{
		Status:  metav1.StatusFailure,
		Code:    http.StatusInternalServerError,
		Reason:  metav1.StatusReasonStoreReadError,
		Message: message,
		Details: details,
	}}
}
