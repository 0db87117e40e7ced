package volumes

import (
	"testing"

	"k8s.io/apimachinery/pkg/api/resource"
)

// What fits into a volume in memory is the least of what bounds it.
func TestMemorySize(t *testing.T) {
	const own, whole = `resources: {limits: {memory: 64Mi}}`, `resources: {limits: {memory: 96Mi}}`
	for name, tt := range map[string]struct{ spec, limit, allocatable, want string }{
		"of the node":                 {`{containers: [{name: a}]}`, "0", "1Gi", "1Gi"},
		"of the volume":               {`{containers: [{name: a}]}`, "2Mi", "1Gi", "2Mi"},
		"volume larger than the node": {`{containers: [{name: a}]}`, "2Gi", "1Gi", "1Gi"},
		"of the container":            {`{containers: [{name: a, ` + own + `}]}`, "0", "1Gi", "64Mi"},
		"of both containers":          {`{containers: [{name: a, ` + own + `}, {name: b, ` + own + `}]}`, "0", "1Gi", "128Mi"},
		"one has none":                {`{containers: [{name: a, ` + own + `}, {name: b}]}`, "0", "1Gi", "1Gi"},
		"an init container has none":  {`{initContainers: [{name: i}], containers: [{name: a, ` + own + `}]}`, "0", "1Gi", "1Gi"},
		"of the pod":                  {`{` + whole + `, containers: [{name: a}]}`, "0", "1Gi", "96Mi"},
		"volume larger than the pod":  {`{` + whole + `, containers: [{name: a}]}`, "128Mi", "1Gi", "96Mi"},
		"volume smaller than the pod": {`{` + whole + `, containers: [{name: a}]}`, "2Mi", "1Gi", "2Mi"},
		"node unknown":                {`{containers: [{name: a}]}`, "0", "0", "0"},
		"volume on an unknown node":   {`{containers: [{name: a}]}`, "2Mi", "0", "2Mi"},
	} {
		t.Run(name, func(t *testing.T) {
			v := podOf(t, `{volumes: [{name: v, emptyDir: {medium: Memory, sizeLimit: "`+tt.limit+`"}}]}`).Spec.Volumes[0].EmptyDir
			allocatable, want := resource.MustParse(tt.allocatable), resource.MustParse(tt.want)
			if got := memorySize(podOf(t, tt.spec), v, allocatable.Value()); got != want.Value() {
				t.Errorf("%d bytes fit, want %s", got, tt.want)
			}
		})
	}
}
