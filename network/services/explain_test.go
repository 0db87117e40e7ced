package services

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

func TestExplain(t *testing.T) {
	of := []*discoveryv1.EndpointSlice{slice(t, corev1.ProtocolTCP, "d/web 8080 10.42.1.2@here 10.42.2.2@b 10.42.2.3@b=unready 10.42.2.4@b=serving 10.42.2.5@b=gone 10.42.9.9@dead1")}
	for _, c := range []struct{ options, want string }{
		{"", "10.42.1.2:8080: | 10.42.2.2:8080: | 10.42.2.3:8080:not ready | 10.42.2.4:8080:terminating | 10.42.2.5:8080:terminating | 10.42.9.9:8080:peer dead1 is dead"},
		{" internal-local", "10.42.1.2:8080: | 10.42.2.2:8080:on another peer, and internalTrafficPolicy is Local | 10.42.2.3:8080:on another peer, and internalTrafficPolicy is Local" +
			" | 10.42.2.4:8080:on another peer, and internalTrafficPolicy is Local | 10.42.2.5:8080:on another peer, and internalTrafficPolicy is Local | 10.42.9.9:8080:peer dead1 is dead"},
	} {
		var got []string
		for _, e := range Explain(service(t, "d/web 10.43.0.5 80"+c.options), of, nil, alive, self()) {
			got = append(got, e.At.String()+":"+e.LeftOut)
		}
		if text := strings.Join(got, " | "); text != c.want {
			t.Errorf("%q:\n%s, want\n%s", c.options, text, c.want)
		}
	}
	split := func(*corev1.Service) *Split {
		return &Split{Weights: map[string]int{"10.42.1.2": 1}, Group: func(e discoveryv1.Endpoint) string { return e.Addresses[0] }}
	}
	if got := Explain(service(t, "d/web 10.43.0.5 80"), of, split, alive, self())[1].LeftOut; got != "its group has no share of the traffic" {
		t.Error(got)
	}
}
