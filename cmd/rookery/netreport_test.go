package main

import (
	"net/netip"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/rundigitalplatform/rookery/network/services"
)

// What is said of a Service that nobody here gets an answer from is what its rules do.
func TestUnanswered(t *testing.T) {
	self := services.Self{Node: "a", ClusterCIDR: netip.MustParsePrefix("10.42.0.0/16"), ServiceCIDR: netip.MustParsePrefix("10.43.0.0/16"), DNS: netip.MustParseAddr("10.43.0.10")}
	svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web"}}
	svc.Spec = corev1.ServiceSpec{ClusterIP: "10.43.0.80", InternalTrafficPolicy: ptr.To(corev1.ServiceInternalTrafficPolicyLocal), Ports: []corev1.ServicePort{{Port: 80, Protocol: corev1.ProtocolTCP}}}
	for _, tt := range []struct {
		ready bool
		want  string
	}{{true, "time out"}, {false, "refused"}} {
		slice := &discoveryv1.EndpointSlice{
			AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Port: ptr.To[int32](8080), Protocol: ptr.To(corev1.ProtocolTCP)}},
			Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"10.42.2.9"}, NodeName: ptr.To("b"), Conditions: discoveryv1.EndpointConditions{Ready: &tt.ready}}},
		}
		got := unanswered(svc, []*discoveryv1.EndpointSlice{slice}, func(string) bool { return true }, []services.Self{self})
		if !strings.Contains(got, tt.want) {
			t.Errorf("elsewhere, ready %v: %q, want %q", tt.ready, got, tt.want)
		}
	}
}
