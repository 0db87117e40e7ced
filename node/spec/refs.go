package spec

import (
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// optional lets a missing object pass where the reference says so; the data is
// then empty. An object of which nothing is known is always an error.
func optional(err error, may *bool, kind, name string) error {
	if apierrors.IsNotFound(err) {
		if isTrue(may) {
			return nil
		}
		return fmt.Errorf("%s %q not found", kind, name)
	}
	return fmt.Errorf("get %s %q: %w", kind, name, err)
}

func isTrue(b *bool) bool { return b != nil && *b }

func first(s []string) string {
	if len(s) == 0 {
		return ""
	}
	return s[0]
}
