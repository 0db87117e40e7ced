package apiserver_test

import (
	"errors"
	"maps"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	flowcontrolv1 "k8s.io/api/flowcontrol/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/scheme"

	"github.com/rundigitalplatform/rookery/apiserver"
	"github.com/rundigitalplatform/rookery/raftstore"
)

var (
	// kindRow and leftOutRow are the rows of the tables in docs/kinds.md.
	kindRow    = regexp.MustCompile("^\\| `([a-z0-9./]+)` \\| ([A-Za-z]+) \\| `([a-z]+)` \\| (.+) \\| .+ \\|$")
	leftOutRow = regexp.MustCompile("^\\| `([a-z0-9./]+ [A-Za-z]+)` \\| (.+) \\|$")
)

// page returns the rows of docs/kinds.md that match, as their parts.
func page(t *testing.T, row *regexp.Regexp) [][]string {
	t.Helper()
	text, err := os.ReadFile("../docs/kinds.md")
	if err != nil {
		t.Fatal(err)
	}
	var out [][]string
	for line := range strings.Lines(string(text)) {
		if m := row.FindStringSubmatch(strings.TrimSpace(line)); m != nil {
			out = append(out, m[1:])
		}
	}
	return out
}

// The page of kinds lists what discovery offers: no more and no less.
func TestPageOfKinds(t *testing.T) {
	p := start(t, raftstore.NewMemory())
	_, lists, err := p.admin.Discovery().ServerGroupsAndResources()
	if err != nil {
		t.Fatal(err)
	}
	served, kinds := map[string][]string{}, map[string]string{}
	for _, list := range lists {
		for _, r := range list.APIResources {
			name, sub, isSub := strings.Cut(r.Name, "/")
			key := list.GroupVersion + " " + name
			if isSub {
				served[key] = append(served[key], sub)
			} else {
				served[key], kinds[key] = append(served[key], ""), r.Kind
			}
		}
	}
	for _, row := range page(t, kindRow) {
		key := row[0] + " " + row[2]
		want := append(strings.Fields(strings.NewReplacer("`", "", "–", "").Replace(row[3])), "")
		have := served[key]
		slices.Sort(want)
		slices.Sort(have)
		if !slices.Equal(want, have) || kinds[key] != row[1] {
			t.Errorf("%s: the page says %s with %q, served is %s with %q", key, row[1], want, kinds[key], have)
		}
		delete(served, key)
	}
	for key := range served {
		t.Errorf("%s is served and not on the page", key)
	}
}

// noResource are kinds of the scheme that have no path in any Kubernetes: they
// travel inside others.
var noResource = regexp.MustCompile(`List$|Options$|^(admission|imagepolicy)\.k8s\.io/|^apidiscovery\.k8s\.io/|` +
	`^v1 (PodStatusResult|RangeAllocation|SerializedReference|Status|APIGroup|APIVersions|WatchEvent)$|/v1 WatchEvent$|/v2 WatchEvent$`)

// Every stable kind of Kubernetes is served, or it is said why not.
func TestEveryStableKindIsServed(t *testing.T) {
	p := start(t, raftstore.NewMemory())
	served := servedKinds(t, p)
	notServed := map[string]string{}
	for _, row := range page(t, leftOutRow) {
		notServed[row[0]] = row[1]
	}
	stable := regexp.MustCompile(`^v[0-9]+$`)
	wanted := map[string]bool{}
	for gvk := range scheme.Scheme.AllKnownTypes() {
		name := strings.TrimPrefix(gvk.GroupVersion().String()+" "+gvk.Kind, "/")
		if stable.MatchString(gvk.Version) && !noResource.MatchString(name) {
			wanted[name] = true
		}
	}
	for name := range wanted {
		if why := notServed[name]; !served[name] && why == "" {
			t.Errorf("%s is stable and neither served nor left out for a reason", name)
		} else if served[name] && why != "" {
			t.Errorf("%s is served and also left out: %s", name, why)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(notServed)) {
		if !wanted[name] {
			t.Errorf("%s is left out and does not exist", name)
		}
	}
}

// servedKinds are those of all resources and subresources, "apps/v1 Deployment".
func servedKinds(t *testing.T, p *peer) map[string]bool {
	t.Helper()
	_, lists, err := p.admin.Discovery().ServerGroupsAndResources()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]bool{}
	for _, list := range lists {
		for _, r := range list.APIResources {
			gv := list.GroupVersion
			if r.Version != "" {
				gv = metav1.GroupVersion{Group: r.Group, Version: r.Version}.String()
			}
			out[gv+" "+r.Kind] = true
		}
	}
	return out
}

// A Service's address is an IPAddress that names it, and goes with it.
func TestServiceAddressIsAnObject(t *testing.T) {
	p := start(t, raftstore.NewMemory())
	ctx, services, addresses := t.Context(), p.admin.CoreV1().Services("default"), p.admin.NetworkingV1().IPAddresses()
	made := aService("", corev1.ServiceTypeClusterIP)
	made.GenerateName = "web-"
	svc, err := services.Create(ctx, made, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	ip, err := addresses.Get(ctx, svc.Spec.ClusterIP, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if ref := ip.Spec.ParentRef; ref == nil || ref.Resource != "services" || ref.Namespace != "default" || ref.Name != svc.Name {
		t.Errorf("the address of %s belongs to %+v", svc.Name, ref)
	}
	if want := (map[string]string{networkingv1.LabelIPAddressFamily: "IPv4", networkingv1.LabelManagedBy: "ipallocator.k8s.io"}); !maps.Equal(ip.Labels, want) {
		t.Errorf("its labels are %v", ip.Labels)
	}
	if _, err := services.Create(ctx, aService("dry", corev1.ServiceTypeClusterIP), metav1.CreateOptions{DryRun: []string{"All"}}); err != nil {
		t.Error(err)
	}
	if list, err := addresses.List(ctx, metav1.ListOptions{}); err != nil || len(list.Items) != 2 { // Service kubernetes has the other
		t.Errorf("addresses: %+v, %v", list.Items, err)
	}

	// An ExternalName has none until it becomes another kind.
	external := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "ext"}, Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: "example.org"}}
	if external, err = services.Create(ctx, external, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	external.Spec = aService("", corev1.ServiceTypeClusterIP).Spec
	if external, err = services.Update(ctx, external, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	if ip, err := addresses.Get(ctx, external.Spec.ClusterIP, metav1.GetOptions{}); err != nil || ip.Spec.ParentRef.Name != "ext" {
		t.Errorf("the address of what was an ExternalName: %+v, %v", ip, err)
	}

	// What somebody else holds is not given out.
	theirs := &networkingv1.IPAddress{ObjectMeta: metav1.ObjectMeta{Name: "10.43.7.7"}, Spec: networkingv1.IPAddressSpec{ParentRef: &networkingv1.ParentReference{Resource: "gateways", Name: "g"}}}
	if _, err := addresses.Create(ctx, theirs, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	chosen := aService("chosen", corev1.ServiceTypeClusterIP)
	chosen.Spec.ClusterIP = "10.43.7.7"
	if _, err := services.Create(ctx, chosen, metav1.CreateOptions{}); !apierrors.IsInvalid(err) {
		t.Errorf("create with a gateway's address: %v", err)
	}

	if err := services.Delete(ctx, svc.Name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := addresses.Get(ctx, svc.Spec.ClusterIP, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("the address of a deleted Service: %v", err)
	}
}

// There is one range of addresses; a second one is refused in words.
func TestServiceRange(t *testing.T) {
	p := start(t, raftstore.NewMemory())
	ctx, ranges := t.Context(), p.admin.NetworkingV1().ServiceCIDRs()
	have, err := ranges.Get(ctx, "kubernetes", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(have.Spec.CIDRs, []string{"10.43.0.0/16"}) || !meta.IsStatusConditionTrue(have.Status.Conditions, networkingv1.ServiceCIDRConditionReady) {
		t.Errorf("the range is %+v", have)
	}
	_, err = ranges.Create(ctx, &networkingv1.ServiceCIDR{ObjectMeta: metav1.ObjectMeta{Name: "more"}, Spec: networkingv1.ServiceCIDRSpec{CIDRs: []string{"10.50.0.0/24"}}}, metav1.CreateOptions{})
	if !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), "come from 10.43.0.0/16 in this cluster") {
		t.Errorf("create a second range: %v", err)
	}
	if err := ranges.Delete(ctx, "kubernetes", metav1.DeleteOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("delete the range: %v", err)
	}
	if err := ranges.DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("delete all ranges: %v", err)
	}
	have.Labels = map[string]string{"a": "b"}
	if _, err := ranges.Update(ctx, have, metav1.UpdateOptions{}); err != nil {
		t.Errorf("label the range: %v", err)
	}
}

// Flow control is kept, with a warning that it has no effect.
func TestFlowControlWarns(t *testing.T) {
	p := start(t, raftstore.NewMemory())
	ctx, heard := t.Context(), &warnings{}
	cfg := p.ClientConfig("admin", "system:masters")
	cfg.WarningHandler = heard
	admin := client(t, cfg).FlowcontrolV1()
	schema, err := admin.FlowSchemas().Get(ctx, "catch-all", metav1.GetOptions{})
	if err != nil || schema.Spec.DistinguisherMethod.Type != flowcontrolv1.FlowDistinguisherMethodByUserType {
		t.Fatalf("the schema of all others: %+v, %v", schema, err)
	}
	mine := &flowcontrolv1.FlowSchema{ObjectMeta: metav1.ObjectMeta{Name: "mine"}, Spec: schema.Spec}
	if _, err := admin.FlowSchemas().Create(ctx, mine, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if len(heard.texts) != 1 || !strings.Contains(heard.texts[0], "no effect") {
		t.Errorf("warnings: %q", heard.texts)
	}
}

func TestComponentStatuses(t *testing.T) {
	p := start(t, raftstore.NewMemory(), func(c *apiserver.Config) {
		c.Components = []apiserver.Component{
			{Name: "podman", Check: func(*http.Request) error { return errors.New("it is off") }},
			{Name: "quorum", Check: func(*http.Request) error { return nil }},
		}
	})
	list, err := p.admin.CoreV1().ComponentStatuses().List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, c := range list.Items {
		got[c.Name] = string(c.Conditions[0].Status) + " " + c.Conditions[0].Message
	}
	if want := (map[string]string{"api": "True ok", "podman": "False it is off", "quorum": "True ok"}); !maps.Equal(got, want) {
		t.Errorf("components are %v", got)
	}
}
