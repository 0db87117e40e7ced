package apifuzz

import (
	"math"
	"math/rand/v2"
	"strings"
)

// dice make every choice about one request.
type dice struct{ *rand.Rand }

func (d *dice) oneIn(n int) bool { return d.IntN(n) == 0 }

func pick[T any](d *dice, from []T) T { return from[d.IntN(len(from))] }

// Few names, so that requests meet the objects of others.
func namespaces() []string { return []string{"default", "fuzz-a", "fuzz-b"} }

func (d *dice) namespace() string {
	if d.oneIn(15) {
		return pick(d, []string{"missing", "kube-system", "kube-public", "Not_A_Name", "..", "%2e%2e", "a b", "\x00", strings.Repeat("n", 300)})
	}
	return pick(d, namespaces())
}

func (d *dice) name() string {
	if d.oneIn(20) {
		return pick(d, []string{"", "..", ".", "a/b", "%2F", "UPPER", "-x", "x.", "\x00", "ü", "name with spaces", "*", strings.Repeat("n", 254), strings.Repeat("n", 9000), "system:node:f0", "kubernetes", "default", "cluster-admin"})
	}
	return pick(d, []string{"f0", "f0", "f1", "f2"})
}

func (d *dice) word() string {
	return pick(d, []string{"a", "b", "app", "name", "f0", "f1", "web", "example.com/x", "kubernetes.io/y", "cpu", "memory", "data.txt", "key", "", "-", "_", "a/b/c", "ü", "\u0000", strings.Repeat("w", 64), strings.Repeat("/", 20)})
}

func (d *dice) integer() any {
	switch d.IntN(4) {
	case 0:
		return d.IntN(100)
	case 1:
		return d.IntN(70000)
	case 2:
		return pick(d, []any{0, 1, -1, math.MaxInt32, math.MinInt32, int64(math.MaxInt64), int64(math.MinInt64), math.MaxInt32 + 1})
	}
	return 1
}

// text makes a string that the field may well take, by its name.
func (d *dice) text(field, format string) string {
	if d.oneIn(12) {
		return d.odd()
	}
	if format == "date-time" {
		return pick(d, []string{"2026-01-02T03:04:05Z", "2026-01-02T03:04:05.000001Z", "0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z", "yesterday", "2026-02-30T00:00:00Z"})
	}
	if format == "byte" {
		return pick(d, []string{"", "aGVsbG8=", "aGVsbG8", "!!", strings.Repeat("QUJD", 100)})
	}
	lower := strings.ToLower(field)
	for _, known := range fieldTexts() {
		if strings.HasSuffix(lower, known.suffix) {
			return pick(d, known.values)
		}
	}
	return pick(d, []string{"a", "f0", "f1", "web", "1", "100m", "1Gi", "True", "Always", "example.com/x", "", "10.42.0.5", "/tmp", "x=y", "80", "https"})
}

// fieldText are values for fields whose names end alike.
type fieldText struct {
	suffix string
	values []string
}

func fieldTexts() []fieldText {
	return []fieldText{
		{"namespace", namespaces()},
		{"image", []string{"localhost/hello:1", "a", "UPPER:bad", "x@sha256:00"}},
		{"name", []string{"f0", "f1", "f2", "a", "web", "system:masters"}},
		{"apigroup", []string{"", "apps", "batch", "*", "rbac.authorization.k8s.io"}},
		{"kind", []string{"Pod", "Deployment", "ConfigMap", "User", "ServiceAccount", "Role", "ClusterRole", "Node", "f0"}},
		{"apiversion", []string{"v1", "apps/v1", "a/b/c", "autoscaling/v2"}},
		{"path", []string{"/", "/tmp", "../..", "/proc/1/root", "a", ".spec.replicas"}},
		{"protocol", []string{"TCP", "UDP", "SCTP", "ICMP"}},
		{"ip", []string{"10.42.0.5", "10.43.0.77", "127.0.0.1", "169.254.169.254", "::1", "fd00::1", "0.0.0.0", "256.1.1.1", "010.0.0.1"}},
		{"ips", []string{"10.42.0.5", "10.43.0.78", "fd00::2"}},
		{"cidr", []string{"10.42.0.0/24", "0.0.0.0/0", "10.42.0.1/24", "::/0", "10.42.0.0/33"}},
		{"policy", []string{"Always", "Never", "OnFailure", "IfNotPresent", "Allow", "Forbid", "Delete", "Retain", "Orphan", "Ignore", "Fail"}},
		{"operator", []string{"In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt", "Equal"}},
		{"type", []string{"ClusterIP", "NodePort", "LoadBalancer", "ExternalName", "Opaque", "kubernetes.io/service-account-token", "kubernetes.io/dockerconfigjson", "RollingUpdate", "Recreate", "Resource", "Utilization", "Ready"}},
		{"schedule", []string{"* * * * *", "@hourly", "TZ=UTC * * * * *", "60 * * * *", "*/0 * * * *"}},
		{"expression", []string{"true", "object.metadata.name != ''", "1/0", "has(object.spec)", "object.x.y.z", "[1,2,3].map(i, [1,2,3].map(j, [1,2,3].map(k, i)))", "'" + strings.Repeat("a", 5000) + "' == ''", strings.Repeat("(", 500)}},
		{"nodename", []string{"f0", "f1", "f2"}},
		{"url", []string{"https://127.0.0.1:1/x", "http://x", "https://user@host/?q#f", "::"}},
		{"plural", []string{"widgets"}},
		{"verb", []string{"get", "list", "*"}},
		{"resource", []string{"pods", "deployments", "configmaps", "*", "pods/exec", "limits.cpu"}},
	}
}

// odd is a string that nobody expects.
func (d *dice) odd() string {
	return pick(d, []string{
		"", " ", "\x00", "\u202e", "ÿ", "\ud7ff", "%s%n", "null", "-0", "1e9999", "-1", "0x7fffffffffffffff", "999999999999999999999999999999Ei", "1e-9999", "1e-999999999", "1e999999999", "1234567890123456789e2147483639", "0e2147483646", "1" + strings.Repeat("0", 20000), "NaN",
		"../../../etc/passwd", "$(HOME)", "{{.}}", "<script>", "a\nb\r\nc: d", "/registry/secrets/", strings.Repeat("A", 70000), strings.Repeat("é", 3000), strings.Repeat("a.", 200),
	})
}

// anything is a random JSON value.
func (d *dice) anything(depth int) any {
	switch n := d.IntN(10); {
	case n < 2 && depth > 0:
		m := map[string]any{}
		for range d.IntN(4) {
			m[d.word()] = d.anything(depth - 1)
		}
		return m
	case n < 4 && depth > 0:
		list := []any{}
		for range d.IntN(4) {
			list = append(list, d.anything(depth-1))
		}
		return list
	case n < 5:
		return nil
	case n < 6:
		return d.oneIn(2)
	case n < 7:
		return d.integer()
	case n < 8:
		return pick(d, []any{0.5, -1e300, 1e21, math.SmallestNonzeroFloat64})
	case n < 9:
		return d.odd()
	}
	return d.text("", "")
}
