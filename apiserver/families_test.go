package apiserver_test

import (
	"encoding/json"
	"net/netip"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/rundigitalplatform/rookery/apiserver"
	"github.com/rundigitalplatform/rookery/raftstore"
)

// ofFamilies makes the cluster have these Service networks.
func ofFamilies(cidrs ...string) func(*apiserver.Config) {
	return func(c *apiserver.Config) {
		for _, cidr := range cidrs {
			c.ServiceCIDRs = append(c.ServiceCIDRs, netip.MustParsePrefix(cidr))
		}
	}
}

// shape writes down what a Service has of each IP family: policy, families, and the
// networks that its addresses are of.
func shape(svc *corev1.Service) string {
	out := []string{"-"}
	if svc.Spec.IPFamilyPolicy != nil {
		out[0] = string(*svc.Spec.IPFamilyPolicy)
	}
	for _, f := range svc.Spec.IPFamilies {
		out = append(out, string(f))
	}
	for _, ip := range svc.Spec.ClusterIPs {
		switch {
		case strings.HasPrefix(ip, "10.43."):
			ip = "10.43"
		case strings.HasPrefix(ip, "fd43::"):
			ip = "fd43"
		}
		out = append(out, ip)
	}
	return strings.Join(out, " ")
}

// What upstream does with a Service's families, in clusters of each kind.
func TestServicesOfEachIPFamily(t *testing.T) {
	const v4, v6 = "10.43.0.0/16", "fd43::/112"
	for _, cluster := range []struct {
		cidrs []string
		cases [][2]string // what is asked for, as JSON, and what comes of it
	}{
		{[]string{v4, v6}, [][2]string{
			{`{}`, "SingleStack IPv4 10.43"},
			{`{"ipFamilyPolicy":"PreferDualStack"}`, "PreferDualStack IPv4 IPv6 10.43 fd43"},
			{`{"ipFamilyPolicy":"RequireDualStack"}`, "RequireDualStack IPv4 IPv6 10.43 fd43"},
			{`{"ipFamilies":["IPv6"]}`, "SingleStack IPv6 fd43"},
			{`{"ipFamilyPolicy":"PreferDualStack","ipFamilies":["IPv6"]}`, "PreferDualStack IPv6 IPv4 fd43 10.43"},
			{`{"ipFamilyPolicy":"RequireDualStack","ipFamilies":["IPv6","IPv4"]}`, "RequireDualStack IPv6 IPv4 fd43 10.43"},
			{`{"ipFamilies":["IPv4","IPv6"]}`, "must be 'RequireDualStack' or 'PreferDualStack'"},
			{`{"clusterIP":"fd43::1234"}`, "SingleStack IPv6 fd43"},
			{`{"ipFamilyPolicy":"PreferDualStack","clusterIP":"10.43.7.7","clusterIPs":["10.43.7.7","fd43::77"]}`, "PreferDualStack IPv4 IPv6 10.43 fd43"},
			{`{"clusterIP":"10.43.7.8","clusterIPs":["10.43.7.8","fd43::78"]}`, "must be 'RequireDualStack' or 'PreferDualStack'"},
			{`{"type":"NodePort","ipFamilyPolicy":"PreferDualStack"}`, "PreferDualStack IPv4 IPv6 10.43 fd43"},
			{`{"type":"LoadBalancer","ipFamilyPolicy":"RequireDualStack"}`, "RequireDualStack IPv4 IPv6 10.43 fd43"},
			{`{"type":"ExternalName","externalName":"example.com"}`, "-"},
			{`{"clusterIP":"None","selector":{"a":"b"}}`, "SingleStack IPv4 None"},
			{`{"clusterIP":"None","selector":{"a":"b"},"ipFamilyPolicy":"PreferDualStack"}`, "PreferDualStack IPv4 IPv6 None"},
			{`{"clusterIP":"None"}`, "RequireDualStack IPv4 IPv6 None"},
			{`{"ipFamilyPolicy":"SingleStack","ipFamilies":["IPv4","IPv6"]}`, "must be 'RequireDualStack' or 'PreferDualStack'"},
			{`{"ipFamilies":["IPv4","IPv4"]}`, "Duplicate value"},
			{`{"ipFamilies":["IPv5"]}`, "Unsupported value"},
			{`{"ipFamilies":["IPv6"],"clusterIP":"10.43.0.77"}`, "expected an IPv6 value"},
		}},
		{[]string{v6, v4}, [][2]string{
			{`{}`, "SingleStack IPv6 fd43"},
			{`{"ipFamilyPolicy":"PreferDualStack"}`, "PreferDualStack IPv6 IPv4 fd43 10.43"},
			{`{"clusterIP":"10.43.0.77"}`, "SingleStack IPv4 10.43"},
			{`{"clusterIP":"None"}`, "RequireDualStack IPv6 IPv4 None"},
		}},
		{[]string{v4}, [][2]string{
			{`{"ipFamilyPolicy":"PreferDualStack"}`, "PreferDualStack IPv4 10.43"},
			{`{"ipFamilyPolicy":"RequireDualStack"}`, "this cluster is not configured for dual-stack services"},
			{`{"ipFamilies":["IPv6"]}`, "not configured on this cluster"},
			{`{"clusterIP":"fd43::9"}`, "not configured on this cluster"},
			{`{"clusterIP":"None"}`, "RequireDualStack IPv4 IPv6 None"},
		}},
		{[]string{v6}, [][2]string{
			{`{}`, "SingleStack IPv6 fd43"},
			{`{"ipFamilyPolicy":"PreferDualStack"}`, "PreferDualStack IPv6 fd43"},
			{`{"ipFamilies":["IPv4"]}`, "not configured on this cluster"},
		}},
	} {
		t.Run(strings.Join(cluster.cidrs, ","), func(t *testing.T) {
			p := start(t, raftstore.NewMemory(), ofFamilies(cluster.cidrs...))
			services := p.admin.CoreV1().Services("default")
			for _, c := range cluster.cases {
				svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{GenerateName: "s-"}, Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 80}}}}
				if err := json.Unmarshal([]byte(c[0]), &svc.Spec); err != nil {
					t.Fatal(err)
				}
				got, err := services.Create(t.Context(), svc, metav1.CreateOptions{})
				switch {
				case err != nil && !(apierrors.IsInvalid(err) && strings.Contains(err.Error(), c[1])):
					t.Errorf("%s: %v, want %s", c[0], err, c[1])
				case err == nil && shape(got) != c[1]:
					t.Errorf("%s: %s, want %s", c[0], shape(got), c[1])
				}
			}
		})
	}
}

// A Service gets the other family and gives it back; its first family stays. Each address is
// an IPAddress, which the repair makes anew if somebody deletes it.
func TestServiceChangesItsFamilies(t *testing.T) {
	p := start(t, raftstore.NewMemory(), ofFamilies("10.43.0.0/16", "fd43::/112"))
	ctx, services := t.Context(), p.admin.CoreV1().Services("default")
	taken := func() (all []string) {
		list, err := p.admin.NetworkingV1().IPAddresses().List(ctx, metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range list.Items {
			if a.Spec.ParentRef.Name == "web" {
				all = append(all, a.Name+" "+a.Labels["ipaddress.kubernetes.io/ip-family"])
			}
		}
		return all
	}
	svc, err := services.Create(ctx, aService("web", corev1.ServiceTypeClusterIP), metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	first := svc.Spec.ClusterIP
	patch := func(spec string) (*corev1.Service, error) {
		return services.Patch(ctx, "web", types.MergePatchType, []byte(`{"spec":`+spec+`}`), metav1.PatchOptions{})
	}

	// A dry run takes nothing.
	if _, err := services.Patch(ctx, "web", types.MergePatchType, []byte(`{"spec":{"ipFamilyPolicy":"RequireDualStack"}}`), metav1.PatchOptions{DryRun: []string{metav1.DryRunAll}}); err != nil || len(taken()) != 1 {
		t.Errorf("dry run: %v, taken %v", err, taken())
	}
	if svc, err = patch(`{"ipFamilyPolicy":"RequireDualStack"}`); err != nil || shape(svc) != "RequireDualStack IPv4 IPv6 10.43 fd43" || svc.Spec.ClusterIP != first {
		t.Fatalf("upgrade: %s, %v", shape(svc), err)
	}
	second := svc.Spec.ClusterIPs[1]
	want := []string{first + " IPv4", second + " IPv6"}
	if got := taken(); !slices.Equal(got, want) {
		t.Errorf("taken: %v, want %v", got, want)
	}
	for spec, why := range map[string]string{
		`{"ipFamilies":["IPv6","IPv4"]}`:                         "expected an IPv6 value",
		`{"clusterIPs":["` + first + `","fd43::99"]}`:            "may not change once set",
		`{"ipFamilyPolicy":"SingleStack","ipFamilies":["IPv6"]}`: "expected an IPv6 value",
	} {
		if got, err := patch(spec); !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), why) {
			t.Errorf("%s: %v, %v, want %s", spec, got, err, why)
		}
	}

	if err := p.admin.NetworkingV1().IPAddresses().Delete(ctx, second, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := p.NewRepair().Once(ctx); err != nil || !slices.Equal(taken(), want) {
		t.Errorf("repaired: %v, %v", taken(), err)
	}

	if svc, err = patch(`{"ipFamilyPolicy":"SingleStack"}`); err != nil || shape(svc) != "SingleStack IPv4 10.43" || svc.Spec.ClusterIP != first {
		t.Fatalf("downgrade: %s, %v", shape(svc), err)
	}
	if got := taken(); !slices.Equal(got, want[:1]) {
		t.Errorf("taken after the downgrade: %v", got)
	}
	if _, err := patch(`{"ipFamilyPolicy":"PreferDualStack"}`); err != nil || len(taken()) != 2 {
		t.Fatalf("upgrade again: %v, %v", taken(), err)
	}
	if err := services.Delete(ctx, "web", metav1.DeleteOptions{}); err != nil || len(taken()) != 0 {
		t.Errorf("after the deletion: %v, %v", taken(), err)
	}
}

func TestTheAPIsOwnServiceInADualStackCluster(t *testing.T) {
	for _, c := range []struct{ first, second, want string }{
		{"10.43.0.0/16", "fd43::/112", "10.43.0.1"}, {"fd43::/112", "10.43.0.0/16", "fd43::1"},
	} {
		p := start(t, raftstore.NewMemory(), ofFamilies(c.first, c.second))
		svc, err := p.admin.CoreV1().Services("default").Get(t.Context(), "kubernetes", metav1.GetOptions{})
		if err != nil || !slices.Equal(svc.Spec.ClusterIPs, []string{c.want}) || *svc.Spec.IPFamilyPolicy != corev1.IPFamilyPolicySingleStack {
			t.Errorf("service kubernetes: %+v, %v, want %s alone", svc.Spec, err, c.want)
		}
		cidr, err := p.admin.NetworkingV1().ServiceCIDRs().Get(t.Context(), "kubernetes", metav1.GetOptions{})
		if err != nil || !slices.Equal(cidr.Spec.CIDRs, []string{c.first, c.second}) {
			t.Errorf("servicecidr kubernetes: %+v, %v", cidr, err)
		}
	}
}

func TestServiceNetworksThatCannotBe(t *testing.T) {
	for _, cidrs := range [][]string{{"10.43.0.0/16", "10.44.0.0/16"}, {"fd43::/112", "fd44::/112"}, {"10.43.0.0/16", "fd43::/112", "fd44::/112"}, {"10.43.0.0/16", "fd43::/126"}} {
		c := apiserver.Config{Store: raftstore.NewMemory(), Logger: discard(), TokenKey: newKey(t)}
		ofFamilies(cidrs...)(&c)
		if _, err := apiserver.New(c); err == nil {
			t.Errorf("%v was accepted", cidrs)
		}
	}
}
