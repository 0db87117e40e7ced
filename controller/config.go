package controller

import (
	"crypto/ecdsa"
	"errors"
	"log/slog"
	"net/netip"
	"time"

	"k8s.io/client-go/informers"
	"k8s.io/client-go/rest"
)

// Liveness is what gossip says of a peer.
type Liveness uint8

const (
	// Unknown is a peer that has not been heard of since this process started. It
	// counts as dead once a term is older than [Config.Settle].
	Unknown Liveness = iota
	Alive
	Dead
)

// Member is a peer that has a record in the cluster.
type Member struct {
	Liveness Liveness
	// Addresses are where it serves the API, one of each IP family at most, that of the
	// cluster's first family before the other; none if it does not (or not known).
	Addresses []netip.AddrPort
	Witness   bool // votes, and runs no pods: it has no Node
}

// Members is who belongs to the cluster and who of them lives.
type Members interface {
	// Snapshot has every peer with a record, by name, this one included. A Node of no
	// such name is deleted. Empty means that it is not known yet.
	Snapshot() map[string]Member
	// Subscribe returns a channel that gets a value when Snapshot may have
	// changed; several changes may be one value. cancel ends it.
	Subscribe() (wake <-chan struct{}, cancel func())
}

// Config is what the controllers need for one term.
type Config struct {
	// ClientConfig gives an in-process client for an identity. Each controller
	// acts as its own service account, with the rights that Kubernetes gives it. Required.
	ClientConfig func(user string, groups ...string) *rest.Config
	// Informers is the process's factory. The controllers share its caches and take
	// their event handlers with them when they end. Required.
	Informers informers.SharedInformerFactory
	// StartInformers starts what has been asked of Informers since, for as long as the
	// process lives. Required.
	StartInformers func()
	// Members is who lives. Required.
	Members Members
	// RootCA is the PEM bundle that pods verify the API with (ConfigMap kube-root-ca.crt). Required.
	RootCA []byte
	// CAFile and CAKeyFile are the cluster's CA, PEM, with which approved requests for
	// certificates are signed. They are read when the first request is there. Required.
	CAFile, CAKeyFile string
	// TokenKey signs the tokens of Secrets for service accounts, as the API's own. Required.
	TokenKey *ecdsa.PrivateKey
	// Settle is how long after the start of a term a peer of which nothing is known
	// is not yet taken for dead. Zero means 10 s: gossip has met everybody by then.
	Settle time.Duration
	// Autoscale is how often each HorizontalPodAutoscaler is looked at. Zero means 15 s, as upstream.
	Autoscale time.Duration
	// LoadBalancerAddresses are given to Services of type LoadBalancer. Empty: none gets one.
	LoadBalancerAddresses []AddressRange
	// Logger is required.
	Logger *slog.Logger
}

func (c Config) withDefaults() Config {
	if c.Settle == 0 {
		c.Settle = 10 * time.Second
	}
	if c.Autoscale == 0 {
		c.Autoscale = 15 * time.Second
	}
	return c
}

// Validate says what is missing.
func (c Config) Validate() error {
	switch {
	case c.ClientConfig == nil, c.Informers == nil, c.StartInformers == nil, c.Members == nil, c.Logger == nil:
		return errors.New("controller: ClientConfig, Informers, StartInformers, Members and Logger are required")
	case c.CAFile == "", c.CAKeyFile == "":
		return errors.New("controller: CAFile and CAKeyFile are required to sign certificates")
	case c.TokenKey == nil:
		return errors.New("controller: TokenKey is required to sign service account tokens")
	case len(c.RootCA) == 0:
		return errors.New("controller: RootCA is empty, pods could not verify the API")
	}
	return nil
}
