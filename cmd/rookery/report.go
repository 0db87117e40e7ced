package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/rundigitalplatform/rookery/cluster"
	"github.com/rundigitalplatform/rookery/cmd/rookery/admin"
	"github.com/rundigitalplatform/rookery/cmd/rookery/check"
	"github.com/rundigitalplatform/rookery/network"
)

// admin is rookery's own API of this peer.
func (p *peer) admin() *admin.Server {
	return &admin.Server{
		Self: p.id.Name(), Tokens: p.tokens, Registry: p.registry, Log: p.log.With("room", "http"),
		Status: p.status, Peers: p.peers,
		Address: func() string {
			host := p.self().Address.String()
			if p.cfg.Port != cluster.DefaultPort {
				return net.JoinHostPort(host, strconv.Itoa(int(p.cfg.Port)))
			}
			return host
		},
		Net:    admin.Net{Service: p.netService, Check: p.netCheck},
		Images: admin.Images{Load: p.agent.LoadImage, Spool: p.cfg.DataDir},
		Remote: func(name string) (*url.URL, http.RoundTripper, error) { return p.agentOf(context.Background(), name) },
	}
}

// peers joins what the records, gossip and Raft know.
func (p *peer) peers() []admin.PeerInfo {
	records, err := p.registry.Peers()
	if err != nil {
		p.log.Error("peer records are not readable", "err", err)
	}
	raft := p.store.Status()
	all := make([]admin.PeerInfo, 0, len(records))
	for _, r := range records {
		info := admin.PeerInfo{
			Name: r.Name, Address: r.Address.String(), State: admin.Joining, Role: admin.NoRole,
			Version: r.Version, Joined: r.Joined, Self: r.Name == p.id.Name(),
		}
		info.Hidden, _ = p.port.Hidden(r.Name)
		if r.OtherAddress.IsValid() {
			info.Other = r.OtherAddress.String()
		}
		for _, share := range p.id.Settings().PeerCIDRs(r.PodCIDR) {
			info.PodCIDRs = append(info.PodCIDRs, share.String())
		}
		if m, ok := p.members.Member(r.Name); ok {
			info.RoundTrip = m.RTT
			if m.State != cluster.StateUnknown {
				info.State, info.Version = m.State.String(), m.Version
			}
			if m.Address.IsValid() {
				info.Address = m.Address.String()
			}
		}
		if info.Self {
			info.State, info.Version = admin.Alive, version
		}
		switch {
		case r.Name == raft.Leader:
			info.Role = admin.Leader
		case slices.Contains(raft.Voters, r.Name):
			info.Role = admin.Voter
		case slices.Contains(raft.Nonvoters, r.Name):
			info.Role = admin.Replica
		}
		all = append(all, info)
	}
	return all
}

// status sums up what this peer knows; it works without quorum too.
func (p *peer) status(ctx context.Context) admin.Status {
	raft := p.store.Status()
	s := admin.Status{
		Peer: p.id.Name(), Version: version, Leader: raft.Leader, Term: raft.Term, Missing: raft.Missing,
		Peers: p.peers(), Network: p.network.Backend(),
	}
	if want := p.registry.Backend(); want != s.Network {
		s.Change = want
	}
	sync, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	err := p.store.Sync(sync)
	s.Quorum = err == nil
	if s.Quorum {
		s.Missing = nil
	}
	if s.Digest, s.Revision, err = p.store.Digest(0); err != nil {
		s.Problems = append(s.Problems, admin.Problem{What: "the state cannot be read: " + err.Error(), Do: "restart rookery on this peer; if that does not help, see its log"})
	}
	s.Pods = p.pods()
	for _, path := range p.network.Paths(ctx, false) {
		if path.MTU > 0 {
			s.Paths = append(s.Paths, fmt.Sprintf("to %s (%s): %s", path.Peer, path.To, smaller(path)))
		}
		if why := p.tooSmall(path); why != "" {
			s.Problems = append(s.Problems, admin.Problem{What: why, Do: "raise the MTU on the way there (a tunnel, a VPN, a router's uplink), then look again: rookery net check"})
		}
	}
	if f := check.DataDir(p.cfg.DataDir); f.Level != check.OK {
		s.Problems = append(s.Problems, admin.Problem{What: f.What + ": " + f.Found, Do: f.Cure})
	}
	if why := p.unrouted.Load(); why != nil {
		s.Problems = append(s.Problems, admin.Problem{What: "pods of this peer may not reach those of others: " + *why,
			Do: "mend that, it is tried again every few seconds; if this machine cannot do it, `rookery net use wireguard` works on every machine"})
	}
	s.Problems = append(append(s.Problems, p.astray(s)...), p.meetings(ctx, s)...)
	rules, cancelRules := context.WithTimeout(ctx, 3*time.Second)
	defer cancelRules()
	for _, r := range p.id.Settings().Ranges() {
		if f := network.CheckFirewall(rules, r.PodCIDR, p.cfg.betweenPeers(s.Network)...); !f.OK && rules.Err() == nil {
			s.Problems = append(s.Problems, admin.Problem{What: f.Detail, Do: f.Cure})
		}
	}
	for _, d := range p.agent.Damage() {
		s.Problems = append(s.Problems, admin.Problem{What: "Podman's storage was damaged: " + d.What + "; " + d.Done, Do: d.Cure})
	}
	engine, cancelEngine := context.WithTimeout(ctx, 3*time.Second)
	defer cancelEngine()
	info, err := p.engine.Info(engine)
	if p.agent.Engine() == nil && errors.Is(err, context.DeadlineExceeded) {
		s.Engine = "podman, which has not said in time what it is"
		what := "Podman on this peer has not said within 3 s what it is: it is busy, or a container hangs"
		if pods := slices.Sorted(maps.Keys(p.agent.Hanging())); len(pods) > 0 {
			what = "Podman does not answer in time about " + strings.Join(pods, ", ")
		}
		s.Problems = append(s.Problems, admin.Problem{What: what, Do: check.Hangs})
	} else if err != nil {
		s.Engine = "podman does not answer"
		s.Problems = append(s.Problems, admin.Problem{What: "Podman on this peer does not answer: " + err.Error(), Do: "systemctl restart podman.socket podman.service"})
	} else {
		s.Engine = fmt.Sprintf("%s %s, %s", info.Name, info.Version, info.OCIRuntime)
	}
	s.Problems = append(s.Problems, problems(s)...)
	return s
}

// problems reads from a status what a human should act on.
func problems(s admin.Status) (all []admin.Problem) {
	if !s.Quorum {
		do := "start or reconnect the missing peers; as soon as a majority of the voters is back, all heals by itself"
		all = append(all, admin.Problem{What: "there is no quorum: this peer runs what it last knew, and nothing can be changed", Do: do})
	}
	for _, peer := range s.Peers {
		switch peer.State {
		case admin.Dead:
			all = append(all, admin.Problem{What: fmt.Sprintf("peer %s (%s) does not answer", peer.Name, peer.Address),
				Do: fmt.Sprintf("look at its power, cable and `systemctl status rookery`; if it is gone for good: rookery peers remove %s", peer.Name)})
		case admin.Suspect:
			all = append(all, admin.Problem{What: fmt.Sprintf("peer %s answers badly", peer.Name), Do: "look at its network if that stays so"})
		}
	}
	for _, w := range s.Pods.Waiting {
		all = append(all, admin.Problem{What: "pod " + w, Do: "rookery describe pod, and rookery logs"})
	}
	return all
}

// pods counts what the local copy of the API says, so also on an island.
func (p *peer) pods() admin.Pods {
	out := admin.Pods{ByPeer: map[string]int{}}
	pods, err := p.api.Informers().Core().V1().Pods().Lister().List(labels.Everything())
	if err != nil {
		p.log.Error("pods are not readable", "err", err)
	}
	for _, pod := range pods {
		if pod.Status.Phase == corev1.PodSucceeded {
			continue
		}
		out.Total++
		out.ByPeer[pod.Spec.NodeName]++
		if podReady(pod) {
			out.Ready++
		} else if reason := waitingReason(pod); reason != "" && len(out.Waiting) < 10 {
			out.Waiting = append(out.Waiting, fmt.Sprintf("%s/%s: %s", pod.Namespace, pod.Name, reason))
		}
	}
	slices.Sort(out.Waiting)
	return out
}

func podReady(pod *corev1.Pod) bool {
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// waitingReason is why a pod does not get on, if it is more than taking its time.
func waitingReason(pod *corev1.Pod) string {
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodScheduled && c.Status == corev1.ConditionFalse {
			return c.Reason + ": " + c.Message
		}
	}
	for _, c := range append(slices.Clone(pod.Status.InitContainerStatuses), pod.Status.ContainerStatuses...) {
		if w := c.State.Waiting; w != nil && w.Reason != "ContainerCreating" && w.Reason != "PodInitializing" {
			return fmt.Sprintf("%s: %s %s", c.Name, w.Reason, w.Message)
		}
	}
	return ""
}
