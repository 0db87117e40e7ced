package network

import (
	"sigs.k8s.io/knftables"

	"github.com/rundigitalplatform/rookery/network/nft"
)

// Device is the name of the machine's end of a pod's interface, by the pod's UID.
func Device(uid string) string { return deviceName(uid) }

// Counts reads a set that counts, of the family's table ([nft.Counts]).
func Counts(family knftables.Family, set string) ([]nft.Count, error) {
	return nft.Counts(family, tableName, set)
}
