// Package identity is who a peer is: the cluster's certificate authority, the
// peer's own key and certificate, the service account signing key, the gossip
// key and the WireGuard key, as they lie in the pki folder of the data directory.
//
// Identity is a key, not an address and not a date. Addresses change by DHCP, so
// a serving certificate that lacks the address a client dialled is issued again
// in memory. Clocks boot in 1970, so between peers the validity dates are not
// looked at: the chain to the CA and the key are what counts ([Identity.VerifyPeer]).
//
// The package opens no socket and knows nothing of the store. It is called by
// package cluster (join, the peer port, gossip) and by cmd/rookery.
package identity
