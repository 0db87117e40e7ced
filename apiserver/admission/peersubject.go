package admission

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/authentication/user"
	certificatesapi "k8s.io/kubernetes/pkg/apis/certificates"
)

// peerSubjectName refuses requests for a peer's certificate. Upstream refuses
// system:masters alone, but here a certificate of system:nodes opens the doors
// between peers too, and who may approve requests must not get through these.
const peerSubjectName = "PeerSubjectRestriction"

type peerSubject struct{ *admission.Handler }

func registerPeerSubject(plugins *admission.Plugins) {
	plugins.Register(peerSubjectName, func(io.Reader) (admission.Interface, error) {
		return peerSubject{admission.NewHandler(admission.Create)}, nil
	})
}

// Validate implements admission.ValidationInterface.
func (peerSubject) Validate(_ context.Context, a admission.Attributes, _ admission.ObjectInterfaces) error {
	request, ok := a.GetObject().(*certificatesapi.CertificateSigningRequest)
	if !ok || a.GetSubresource() != "" {
		return nil
	}
	parsed, err := certificatesapi.ParseCSR(request.Spec.Request)
	if err != nil {
		return admission.NewForbidden(a, fmt.Errorf("parse the certificate request: %w", err))
	}
	if strings.HasPrefix(parsed.Subject.CommonName, "system:node:") || slices.Contains(parsed.Subject.Organization, user.NodesGroup) {
		return admission.NewForbidden(a, fmt.Errorf("%q would be a peer's certificate; a peer gets it by `rookery up --join`", parsed.Subject.String()))
	}
	return nil
}
