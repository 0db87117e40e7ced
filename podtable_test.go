package rookery_test

import (
	"fmt"
	"os"
	"reflect"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

const podTable = "docs/pods.md"

const podTableHead = `# Every field of a pod

What becomes of each field of PodSpec and of the types below it, Container among them. **Supported** does what Kubernetes says; the others are those of
[kinds.md](kinds.md), with why. Below a field that is ignored or refused nothing is listed. This page is made from kinds.md and [testdata/fields.txt](testdata/fields.txt), and a test compares all of them with the types of
Kubernetes' API: ` + "`UPDATE=1 go test -run TestPodTable .`" + ` writes it anew.
`

// The page that names every field of a pod is what the tables and the API's types say.
func TestPodTable(t *testing.T) {
	verdicts := map[string][2]string{}
	for _, line := range lines(t, "docs/kinds.md") {
		if m := fieldRow.FindStringSubmatch(line); m != nil {
			verdicts[m[1]] = [2]string{m[2], m[3]}
		}
	}
	for _, line := range lines(t, "docs/testdata/fields.txt") {
		if line != "" && !strings.HasPrefix(line, "#") {
			verdicts[line] = [2]string{"supported", ""}
		}
	}
	want := podTableHead + podFields(t, verdicts)
	if os.Getenv("UPDATE") != "" {
		if err := os.WriteFile(podTable, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	have, err := os.ReadFile(podTable)
	if err != nil {
		t.Fatal(err)
	}
	if string(have) != want {
		t.Errorf("%s is out of date: UPDATE=1 go test -run TestPodTable . writes it anew", podTable)
	}
}

// podFields renders a section for each type, PodSpec and Container first, then in the
// order in which they are met.
func podFields(t *testing.T, verdicts map[string][2]string) string {
	var b strings.Builder
	seen := map[reflect.Type]bool{}
	queue := []reflect.Type{reflect.TypeFor[corev1.PodSpec](), reflect.TypeFor[corev1.Container](), reflect.TypeFor[corev1.EphemeralContainer]()}
	for len(queue) > 0 {
		section := queue[0]
		queue = queue[1:]
		if seen[section] {
			continue
		}
		seen[section] = true
		fmt.Fprintf(&b, "\n## %s\n\n| field | | why |\n|---|---|---|\n", section.Name())
		var walk func(reflect.Type)
		walk = func(typ reflect.Type) {
			for i := range typ.NumField() {
				f := typ.Field(i)
				name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
				below := f.Type
				for below.Kind() == reflect.Pointer || below.Kind() == reflect.Slice || below.Kind() == reflect.Map {
					below = below.Elem()
				}
				if f.Anonymous || name == "" {
					walk(below)
					continue
				}
				v, ok := verdicts[typ.Name()+"."+name]
				if !ok {
					t.Errorf("%s.%s: nobody has said what becomes of it", typ.Name(), name)
				}
				fmt.Fprintf(&b, "%s\n", strings.TrimRight(fmt.Sprintf("| `%s` | %s | %s", name, v[0], v[1]), " ")+" |")
				ours := below.Kind() == reflect.Struct && strings.HasPrefix(below.PkgPath(), "k8s.io/api/")
				if ours && (v[0] == "supported" || v[0] == "partly") {
					queue = append(queue, below)
				}
			}
		}
		walk(section)
	}
	return b.String()
}
