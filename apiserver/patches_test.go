package apiserver_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/rundigitalplatform/rookery/raftstore"
)

// A patch of brackets is refused before it is merged; what is deep but small, large but
// flat, or only looks deep because of brackets in strings, is not.
func TestMergePatchesOfManyLevels(t *testing.T) {
	p := start(t, raftstore.NewMemory())
	maps := p.admin.CoreV1().ConfigMaps("default")
	if _, err := maps.Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "a"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	nested := func(n int, inner string) string {
		return strings.Repeat(`{"data":`, n) + inner + strings.Repeat("}", n)
	}
	for _, tt := range []struct {
		name, patch string
		refused     string // "": taken
	}{
		{"flat", `{"data":{"k":"v"}}`, ""},
		{"large and flat", fmt.Sprintf(`{"data":{"k":%q}}`, strings.Repeat("x", 900<<10)), ""},
		{"brackets in a string", fmt.Sprintf(`{"data":{"k":%q}}`, strings.Repeat(`{["\`, 50<<10)), ""},
		{"8000 levels", nested(8000, "1"), "nested 8000 levels deep"},
		{"200 levels around much", nested(200, fmt.Sprintf("%q", strings.Repeat("x", 1<<20))), "nested 200 levels deep"},
		{"too large for anything", fmt.Sprintf(`{"data":{"k":%q}}`, strings.Repeat("x", 4<<20)), "limit is 3145728"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			began := time.Now()
			_, err := maps.Patch(t.Context(), "a", types.MergePatchType, []byte(tt.patch), metav1.PatchOptions{})
			if tt.refused == "" && err != nil {
				t.Errorf("refused: %v", err)
			}
			if tt.refused != "" && (err == nil || !strings.Contains(err.Error(), tt.refused) || !apierrors.IsBadRequest(err) && !apierrors.IsRequestEntityTooLargeError(err)) {
				t.Errorf("got %v, want an error with %q", err, tt.refused)
			}
			if took := time.Since(began); took > 10*time.Second {
				t.Errorf("it took %s", took)
			}
		})
	}
}

// The library panics at a replacement of everything by nothing.
func TestJSONPatchThatReplacesAllByNothing(t *testing.T) {
	p := start(t, raftstore.NewMemory())
	maps := p.admin.CoreV1().ConfigMaps("default")
	if _, err := maps.Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "a"}, Data: map[string]string{"k": "v"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, patch := range []string{
		`[{"op":"replace","path":""}]`,
		`[{"op":"test","path":"/data/k","value":"v"},{"op":"\u0072eplace","path":"","from":"/data"}]`,
	} {
		if _, err := maps.Patch(t.Context(), "a", types.JSONPatchType, []byte(patch), metav1.PatchOptions{}); !apierrors.IsBadRequest(err) || !strings.Contains(err.Error(), "has no value") {
			t.Errorf("%s: %v, want 400", patch, err)
		}
	}
	whole := `[{"op":"replace","path":"","value":{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"a","namespace":"default"},"data":{"k":"w"}}}]`
	got, err := maps.Patch(t.Context(), "a", types.JSONPatchType, []byte(whole), metav1.PatchOptions{})
	if err != nil || got.Data["k"] != "w" {
		t.Errorf("by another: %v, %v", got.Data, err)
	}
	if _, err := maps.Patch(t.Context(), "a", types.JSONPatchType, []byte(`[{"op":"replace","path":"/data/k","value":null}]`), metav1.PatchOptions{}); err != nil {
		t.Errorf("a null below: %v", err)
	}
}
