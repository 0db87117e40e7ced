package volumes

import (
	"bytes"
	"encoding/pem"
	"fmt"
	"slices"

	v1 "k8s.io/api/core/v1"
)

// trustBundle writes the certificates of all bundles that are named, each once and
// in an order of their own, as kubelet does, so that nobody counts on theirs.
func (p *projection) trustBundle(of *v1.ClusterTrustBundleProjection) error {
	what := "trust bundles"
	switch {
	case of.Name != nil:
		what = fmt.Sprintf("clustertrustbundle %q", *of.Name)
	case of.SignerName != nil:
		what = fmt.Sprintf("clustertrustbundles of signer %q", *of.SignerName)
	}
	bundles, err := p.src.TrustBundles(of)
	if err != nil {
		return fmt.Errorf("get %s: %w", what, err)
	}
	if len(bundles) == 0 && (of.Optional == nil || !*of.Optional) {
		return fmt.Errorf("%s not found", what)
	}
	var blocks [][]byte
	for _, b := range bundles {
		for rest := []byte(b.Spec.TrustBundle); ; {
			var block *pem.Block
			if block, rest = pem.Decode(rest); block == nil {
				break
			}
			blocks = append(blocks, pem.EncodeToMemory(&pem.Block{Type: block.Type, Bytes: block.Bytes}))
		}
	}
	slices.SortFunc(blocks, bytes.Compare)
	blocks = slices.CompactFunc(blocks, bytes.Equal)
	p.add(of.Path, bytes.Join(blocks, nil), nil)
	return nil
}
