package apiserver

import (
	_ "k8s.io/kubernetes/pkg/apis/certificates/install"
	requests "k8s.io/kubernetes/pkg/registry/certificates/certificates/storage"
	bundles "k8s.io/kubernetes/pkg/registry/certificates/clustertrustbundle/storage"
	podrequests "k8s.io/kubernetes/pkg/registry/certificates/podcertificaterequest/storage"
	"k8s.io/utils/clock"
)

// certificates builds the group by which users of the API ask for certificates
// and say whom to trust. No signer of certificates for pods is here: who installs
// one finds the requests served.
func (b *builder) certificates() group {
	rest, status, approval, err := requests.NewREST(b.options)
	b.note(err)
	podRequests, podStatus, err := podrequests.NewREST(b.options, b.authz, clock.RealClock{})
	b.note(err)
	return group{"certificates.k8s.io", v1(resources{
		"certificatesigningrequests":          rest,
		"certificatesigningrequests/status":   status,
		"certificatesigningrequests/approval": approval,
		"clustertrustbundles":                 one(b, bundles.NewREST),
		"podcertificaterequests":              podRequests, "podcertificaterequests/status": podStatus,
	})}
}
