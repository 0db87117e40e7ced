package rookery_test

import (
	"bufio"
	"maps"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
)

// fieldsOf walks what a user writes in these kinds: every field of every type of
// k8s.io/api on the way, as Type.field. It does not go below a field that stop has,
// nor into metadata and status.
func fieldsOf(stop map[string]bool, kinds ...any) map[string]bool {
	out, seen := map[string]bool{}, map[reflect.Type]bool{}
	var walk func(reflect.Type)
	walk = func(t reflect.Type) {
		for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice || t.Kind() == reflect.Map {
			t = t.Elem()
		}
		if t.Kind() != reflect.Struct || !strings.HasPrefix(t.PkgPath(), "k8s.io/api/") || seen[t] {
			return
		}
		seen[t] = true
		for i := range t.NumField() {
			f := t.Field(i)
			name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			if f.Anonymous || name == "" {
				walk(f.Type)
				continue
			}
			if name == "metadata" || name == "status" {
				continue
			}
			path := t.Name() + "." + name
			out[path] = true
			if !stop[path] {
				walk(f.Type)
			}
		}
	}
	for _, k := range kinds {
		walk(reflect.TypeOf(k))
	}
	return out
}

// fieldRow is a row of the tables in docs/kinds.md: what is not done, and why.
var fieldRow = regexp.MustCompile("^\\| `([A-Za-z0-9]+\\.[A-Za-z0-9]+)` \\| (ignored|refused|partly) \\| (.+) \\|$")

// Every field of the kinds that run pods is either in the table of docs/kinds.md,
// with what becomes of it, or known to do what Kubernetes says. A field that is new
// in Kubernetes is neither, and somebody has to find out.
func TestEveryFieldIsAccountedFor(t *testing.T) {
	table, known := map[string]string{}, map[string]bool{}
	for _, line := range lines(t, "docs/kinds.md") {
		if m := fieldRow.FindStringSubmatch(line); m != nil {
			if table[m[1]] != "" {
				t.Errorf("%s is in the table twice", m[1])
			}
			table[m[1]] = m[2]
		}
	}
	for _, line := range lines(t, "docs/testdata/fields.txt") {
		if line != "" && !strings.HasPrefix(line, "#") {
			known[line] = true
		}
	}
	stop := map[string]bool{}
	for field, verdict := range table {
		stop[field] = verdict != "partly"
	}
	have := fieldsOf(stop, corev1.Pod{}, corev1.Service{}, corev1.PersistentVolumeClaim{}, corev1.PersistentVolume{},
		appsv1.Deployment{}, appsv1.ReplicaSet{}, appsv1.StatefulSet{}, appsv1.DaemonSet{}, batchv1.Job{}, batchv1.CronJob{})
	for _, field := range slices.Sorted(maps.Keys(have)) {
		switch verdict := table[field]; {
		case verdict == "" && !known[field]:
			t.Errorf("%s: nobody has said whether it has an effect", field)
		case verdict != "" && known[field]:
			t.Errorf("%s: %s by docs/kinds.md, and done by docs/testdata/fields.txt", field, verdict)
		}
	}
	for field := range table {
		if !have[field] {
			t.Errorf("%s is in docs/kinds.md, and is no field, or below one that is", field)
		}
	}
	for field := range known {
		if !have[field] {
			t.Errorf("%s is in docs/testdata/fields.txt, and is no field, or below one that is not done", field)
		}
	}
}

func lines(t *testing.T, path string) []string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var out []string
	for s := bufio.NewScanner(f); s.Scan(); {
		out = append(out, s.Text())
	}
	return out
}
