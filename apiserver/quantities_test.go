package apiserver_test

import (
	"context"
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

// Each of these computes for seconds to hours upstream, or panics.
func hostileQuantities() []string {
	return []string{"1e-999999999", "1e999999999", "-1e-2147483647", "0e2147483646", "1234567890123456789e999999999", "1234567890123456789e2147483639", "1" + strings.Repeat("0", 1<<20), "0." + strings.Repeat("0", 1<<20) + "1"}
}

func TestHostileQuantities(t *testing.T) {
	p := start(t, raftstore.NewMemory())
	rest := p.admin.CoreV1().RESTClient()
	limits := func(name, q string) string {
		return fmt.Sprintf(`{"apiVersion":"v1","kind":"LimitRange","metadata":{"name":%q},"spec":{"limits":[{"type":"Container","max":{"memory":"1Gi"},"default":{"memory":%q}}]}}`, name, q)
	}
	pod := func(q string) string {
		return fmt.Sprintf(`{"apiVersion":"v1","kind":"Pod","metadata":{"generateName":"q"},"spec":{"containers":[{"name":"c","image":"localhost/c","resources":{"limits":{"cpu":%q}}}],"volumes":[{"name":"v","emptyDir":{"sizeLimit":%[1]q}}]}}`, q)
	}
	if _, err := p.admin.CoreV1().LimitRanges("default").Create(t.Context(), &corev1.LimitRange{ObjectMeta: metav1.ObjectMeta{Name: "good"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	for i, q := range hostileQuantities() {
		short := q[:min(len(q), 32)]
		tiny := strings.Contains(q, "e-") // rounded up to the smallest there is: 1n, and taken
		asks := map[string]func(context.Context) error{
			"pod": func(ctx context.Context) error {
				return rest.Post().Namespace("default").Resource("pods").SetHeader("Content-Type", "application/json").Body([]byte(pod(q))).Do(ctx).Error()
			},
			"limits as YAML": func(ctx context.Context) error {
				return rest.Post().Namespace("default").Resource("limitranges").SetHeader("Content-Type", "application/yaml").Body([]byte(limits(fmt.Sprint("y", i), q))).Do(ctx).Error()
			},
			"merge patch": func(ctx context.Context) error {
				return rest.Patch(types.MergePatchType).Namespace("default").Resource("limitranges").Name("good").Body([]byte(limits("good", q))).Do(ctx).Error()
			},
			"JSON patch": func(ctx context.Context) error {
				body := fmt.Sprintf(`[{"op":"replace","path":"/spec","value":{"limits":[{"type":"Container","max":{"cpu":%q}}]}}]`, q)
				return rest.Patch(types.JSONPatchType).Namespace("default").Resource("limitranges").Name("good").Body([]byte(body)).Do(ctx).Error()
			},
			"apply": func(ctx context.Context) error {
				return rest.Patch(types.ApplyPatchType).Param("fieldManager", "t").Namespace("default").Resource("limitranges").Name(fmt.Sprint("applied", i)).Body([]byte(limits(fmt.Sprint("applied", i), q))).Do(ctx).Error()
			},
		}
		for what, ask := range asks {
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			began := time.Now()
			err := ask(ctx)
			cancel()
			// A number too long is no number, and an apply finds that only when it converts.
			if took := time.Since(began); took > 5*time.Second {
				t.Errorf("%s with %s took %v", what, short, took)
			}
			if tiny {
				continue
			}
			if !apierrors.IsInvalid(err) && !apierrors.IsBadRequest(err) && !(what == "apply" && strings.Contains(fmt.Sprint(err), "unable to parse numeric part of quantity")) {
				t.Errorf("%s with %s: %v", what, short, err)
			}
			if !strings.Contains(fmt.Sprint(err), "10^-100") && len(q) < 100 {
				t.Errorf("%s with %s does not say the bounds: %v", what, short, err)
			}
		}
	}
	for i, q := range []string{"1e3", "100e-3", "1e99", "12345678901234567890123", "1n", "9Ei", "0e0"} {
		if err := rest.Post().Namespace("default").Resource("limitranges").SetHeader("Content-Type", "application/json").Body([]byte(strings.ReplaceAll(limits(fmt.Sprint("fair", i), q), `"max":{"memory":"1Gi"},`, ""))).Do(t.Context()).Error(); err != nil {
			t.Errorf("%s is refused: %v", q, err)
		}
	}
}
