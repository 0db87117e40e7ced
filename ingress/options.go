package ingress

import (
	"fmt"
	"strconv"
	"time"

	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// The annotations of an Ingress; there are no others.
const (
	annotationRedirect = "ingress.rookery.io/ssl-redirect"     // "false": hosts with TLS answer without it too
	annotationTimeout  = "ingress.rookery.io/timeout"          // a duration such as 5m; 0 is none
	annotationMaxBody  = "ingress.rookery.io/max-body-size"    // a quantity such as 10Mi; 0 is no bound
	annotationProtocol = "ingress.rookery.io/backend-protocol" // http, https (any certificate) or h2c
)

// protocol is how an endpoint is spoken to.
type protocol string

const (
	protocolHTTP  protocol = "http"
	protocolHTTPS protocol = "https" // of whatever certificate: pods' certificates are nobody's
	protocolH2C   protocol = "h2c"   // HTTP/2 without TLS, as gRPC has it
)

// options are what an Ingress's annotations say.
type options struct {
	redirect bool
	timeout  time.Duration // 0: none
	maxBody  int64         // 0: no bound
	protocol protocol      // "": as the Service's port says
}

// parseOptions returns the options, and what of the annotations cannot be read: there
// the default holds.
func parseOptions(ing *networkingv1.Ingress, o options) (options, []error) {
	var errs []error
	read := func(name string, parse func(string) error) {
		if text, ok := ing.Annotations[name]; ok {
			if err := parse(text); err != nil {
				errs = append(errs, fmt.Errorf("annotation %s: %w", name, err))
			}
		}
	}
	o.redirect = true
	read(annotationRedirect, func(s string) error {
		on, err := strconv.ParseBool(s)
		if err != nil {
			return fmt.Errorf("%q is not true or false", s)
		}
		o.redirect = on
		return nil
	})
	read(annotationTimeout, func(s string) error {
		d, err := time.ParseDuration(s)
		if err != nil || d < 0 {
			return fmt.Errorf("%q is not a duration such as 30s or 5m", s)
		}
		o.timeout = d
		return nil
	})
	read(annotationMaxBody, func(s string) error {
		q, err := resource.ParseQuantity(s)
		if err != nil || q.Sign() < 0 {
			return fmt.Errorf("%q is not a size such as 10Mi", s)
		}
		o.maxBody = q.Value()
		return nil
	})
	read(annotationProtocol, func(s string) error {
		switch p := protocol(s); p {
		case protocolHTTP, protocolHTTPS, protocolH2C:
			o.protocol = p
			return nil
		}
		return fmt.Errorf("%q: there are http, https and h2c", s)
	})
	return o, errs
}
