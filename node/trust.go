package node

import (
	"crypto/sha256"
	"encoding/hex"

	certificatesv1 "k8s.io/api/certificates/v1"
	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/util/validation"
)

// TrustBundles implements spec.Sources. As other objects they are kept for a time
// without API.
func (p podObjects) TrustBundles(of *v1.ClusterTrustBundleProjection) ([]certificatesv1.ClusterTrustBundle, error) {
	name, options := "", metav1.ListOptions{}
	switch {
	case of.Name != nil:
		name, options.FieldSelector = *of.Name, fields.OneTermEqualSelector("metadata.name", *of.Name).String()
	case of.SignerName == nil || of.LabelSelector == nil: // no selector matches nothing, as in kubelet
		return nil, nil
	default:
		selector, err := metav1.LabelSelectorAsSelector(of.LabelSelector)
		if err != nil {
			return nil, err
		}
		options.FieldSelector = fields.OneTermEqualSelector("spec.signerName", *of.SignerName).String()
		options.LabelSelector = selector.String()
		name = *of.SignerName + " " + options.LabelSelector
	}
	list, err := get(p, trustBundleKind, "", fileName(name), func() (*certificatesv1.ClusterTrustBundleList, error) {
		return p.client.CertificatesV1().ClusterTrustBundles().List(p.ctx, options)
	})
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return list.Items, nil
}

// fileName is a name that is safe in a path, the same for the same bundles.
func fileName(name string) string {
	if len(validation.IsDNS1123Subdomain(name)) == 0 {
		return name
	}
	sum := sha256.Sum256([]byte(name))
	return hex.EncodeToString(sum[:])
}
