// Package voters keeps Raft's configuration in line with the peer records, on
// the leader: every recorded peer is a server, one, three or five of them vote, a voter
// that stays dead is replaced by a healthy replica, and a peer whose record is gone is removed.
//
// The decision is the pure function [Plan]; [Reconciler] gathers what it needs and
// carries out one change at a time. Records and liveness come through functions in
// [Config], so that the package knows neither the store nor gossip. cmd/rookery
// runs it under a context that ends with the leader's term.
//
// Why not hashicorp/raft-autopilot, of which the idea is: its health needs a
// remote call to every server every two seconds (FetchServerStats) where we
// have gossip, which carries the applied index already; it never adds servers, so this
// package would be needed beside it; it prunes servers because they are dead,
// where ours go only when a human removes them; its stabilization is that of promotion
// alone and not of replacement; and it links testify's mocks into the binary.
package voters
