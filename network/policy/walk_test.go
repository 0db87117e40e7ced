package policy

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/yaml"

	"github.com/rundigitalplatform/rookery/network/nft"
	"github.com/rundigitalplatform/rookery/network/nft/nfttest"
)

// After each of hundreds of changes of policies, pods and their labels the kernel's rules are
// those of a fresh start.
func TestWalkInTheKernel(t *testing.T) {
	for _, self := range []Self{self, self6} {
		t.Run(string(self.family()), func(t *testing.T) { walk(t, self) })
	}
}

func walk(t *testing.T, self Self) {
	nfttest.Namespace(t)
	r := rand.New(rand.NewPCG(7, 8))
	pods, policies := map[int]*corev1.Pod{}, map[int]*networkingv1.NetworkPolicy{}
	pick := func(texts ...string) string { return texts[r.IntN(len(texts))] }
	namespace := func() string { return pick("shop", "desk") }
	selector := func() string { return pick("{}", "{matchLabels: {app: a}}", "{matchLabels: {app: b}}") }
	peer := func() string {
		return pick("{podSelector: "+selector()+"}", "{namespaceSelector: {matchLabels: {name: shop}}}", "{namespaceSelector: {}, podSelector: "+selector()+"}",
			"{ipBlock: {cidr: 0.0.0.0/0}}", "{ipBlock: {cidr: '::/0'}}",
			"{ipBlock: {cidr: 10.42.0.0/16, except: [10.42.1.0/24, 10.42.1.0/28, 10.42.9.0/24]}}", "{ipBlock: {cidr: 'fd42::/56', except: ['fd42:0:0:1::/64', 'fd42:0:0:1::/72', 'fd42:0:0:9::/64']}}")
	}
	port := func() string {
		return pick("{port: 80}", "{port: web}", "{protocol: UDP}", "{port: 80, endPort: 90}", "{port: 85, endPort: 99}", "{protocol: UDP, port: 91}", "{protocol: SCTP, port: 5}")
	}
	rules := func(end string) string {
		return pick("[]", "[{}]", "[{"+end+": ["+peer()+"]}]", "[{ports: ["+port()+", "+port()+"]}]", "[{"+end+": ["+peer()+", "+peer()+"], ports: ["+port()+", "+port()+"]}, {"+end+": ["+peer()+"]}]")
	}
	nfttest.Walk(t, self.family(), 150, func(int) (nft.State, *nft.Patch) {
		i := r.IntN(12)
		switch r.IntN(6) {
		case 0:
			delete(pods, i)
		case 1:
			delete(policies, i%4)
		case 2, 3:
			pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: namespace(), Name: fmt.Sprint("pod", i), UID: types.UID(fmt.Sprint(i)), Labels: map[string]string{"app": pick("a", "b", "c")}}}
			pod.Spec.NodeName = pick("here", "there")
			pod.Spec.Containers = []corev1.Container{{Ports: []corev1.ContainerPort{{Name: "web", ContainerPort: 8000 + int32(r.IntN(3))}}}}
			pod.Status.PodIPs = []corev1.PodIP{{IP: fmt.Sprintf("10.42.2.%d", 2+i)}, {IP: second(fmt.Sprintf("10.42.2.%d", 2+i))}}
			pods[i] = pod
		default:
			p := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: namespace(), Name: fmt.Sprint("p", i%4)}}
			text := "{podSelector: " + selector() + ", policyTypes: " + pick("[Ingress]", "[Egress]", "[Ingress, Egress]") + ", ingress: " + rules("from") + ", egress: " + rules("to") + "}"
			if err := yaml.UnmarshalStrict([]byte(text), &p.Spec); err != nil {
				t.Fatalf("%v in %s", err, text)
			}
			policies[i%4] = p
		}
		o := objects{local: map[string][]netip.Addr{}}
		for _, ns := range []string{"shop", "desk"} {
			o.namespaces = append(o.namespaces, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: ns, Labels: map[string]string{"name": ns}}})
		}
		for i, pod := range pods {
			o.pods = append(o.pods, pod)
			if pod.Spec.NodeName == "here" {
				addr := fmt.Sprintf("10.42.1.%d", 2+i)
				o.local[string(pod.UID)] = []netip.Addr{netip.MustParseAddr(addr), netip.MustParseAddr(second(addr))}
			}
		}
		for i := range 4 {
			if p := policies[i]; p != nil {
				o.policies = append(o.policies, p)
			}
		}
		slices.SortFunc(o.pods, func(a, b *corev1.Pod) int { return r.IntN(3) - 1 }) // a lister has no order
		m, err := compile(o, self)
		if err != nil {
			t.Fatal(err)
		}
		return m.rules(), nil
	})
}
