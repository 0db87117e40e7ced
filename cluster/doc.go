// Package cluster is who is here: the records of the peers that belong to the
// cluster, join tokens and the join itself, gossip with the liveness that comes
// of it, and the one TLS port on which peers and users meet.
//
// Its parts are composed by cmd/rookery: [Registry] and [Tokens] over a
// raftstore.Store, [JoinHandler] on the API port and [Join] on the machine that
// comes, [Port] for TLS, [Members] for gossip. Keys and certificates are in
// cluster/identity, Raft membership is in cluster/voters.
//
// The package does not decide what becomes of pods when a peer dies: others
// subscribe to [Members] and read the records. It never imports their packages.
package cluster
