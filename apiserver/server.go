package apiserver

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"runtime/debug"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	"k8s.io/kubernetes/pkg/serviceaccount"
	"k8s.io/kubernetes/plugin/pkg/auth/authorizer/node"

	"github.com/rundigitalplatform/rookery/apiserver/admission"
	"github.com/rundigitalplatform/rookery/apiserver/aggregation"
	"github.com/rundigitalplatform/rookery/apiserver/allocation"
	"github.com/rundigitalplatform/rookery/apiserver/authentication"
	"github.com/rundigitalplatform/rookery/apiserver/customresources"
	"github.com/rundigitalplatform/rookery/raftstore"
)

// Server is the Kubernetes API of one peer. Its methods may be called concurrently.
type Server struct {
	cfg       Config
	codecs    serializer.CodecFactory
	handler   http.Handler
	client    kubernetes.Interface // of the server itself, system:masters
	factory   informers.SharedInformerFactory
	addresses allocation.Families
	nodePorts *allocation.NodePorts
	types     *types
	graph     *node.Graph // which objects the pods of each peer refer to

	extensions *aggregation.Aggregator // APIs of extension servers
	custom     *customresources.API    // kinds that users define

	life context.Context // ends when Run ends
	end  context.CancelFunc

	mu       sync.Mutex
	running  bool
	closing  bool
	synced   bool
	requests sync.WaitGroup
}

// New puts the API together. It reads and writes nothing; a configuration that
// cannot work is refused with the cure.
func New(cfg Config) (*Server, error) {
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	s := &Server{
		cfg:       cfg,
		codecs:    serializer.NewCodecFactory(legacyscheme.Scheme, serializer.WithStreamingCollectionEncodingToJSON(), serializer.WithStreamingCollectionEncodingToProtobuf()),
		nodePorts: allocation.NewNodePorts(cfg.Store, registryPrefix, cfg.NodePorts),
		types:     newTypes(),
		graph:     node.NewGraph(),
	}
	s.life, s.end = context.WithCancel(context.Background())
	client, err := kubernetes.NewForConfig(s.ClientConfig("system:apiserver", user.SystemPrivilegedGroup))
	if err != nil {
		return nil, fmt.Errorf("build the api's own client: %w", err)
	}
	s.client = client
	s.factory = informers.NewSharedInformerFactory(client, 0)
	if err := s.build(); err != nil {
		return nil, err
	}
	return s, nil
}

func (s *Server) build() error {
	tokens, err := serviceaccount.JWTTokenGenerator(authentication.Issuer, s.cfg.TokenKey)
	if err != nil {
		return fmt.Errorf("use service account signing key: %w", err)
	}
	bound := &boundObjects{}
	authn, err := authentication.New(authentication.Config{
		Life: s.life, Components: authenticator.RequestFunc(inProcessIdentity), ClientCAs: s.cfg.ClientCAs, Revoked: s.cfg.Revoked,
		TokenKey: s.cfg.TokenKey, Bound: bound, Secrets: s.client.CoreV1(), OIDC: s.cfg.OIDC, OpenPaths: openPaths(),
	})
	if err != nil {
		return err
	}
	authz, rules, err := newAuthorizer(s.factory, s.graph)
	if err != nil {
		return err
	}
	admit, err := admission.New(admission.Config{
		Client: s.client, Informers: s.factory, StartInformers: s.StartInformers, Authorizer: authz, Store: s.cfg.Store, Prefix: registryPrefix, Quorum: s.quorum,
		Objects: func() (dynamic.Interface, error) {
			return dynamic.NewForConfig(s.ClientConfig("system:apiserver", "system:masters"))
		},
		Services: serviceResolver{s.client}, UnreachableSeconds: s.cfg.TolerationSeconds, KubernetesVersion: s.cfg.KubernetesVersion, Life: s.life,
	})
	if err != nil {
		return err
	}

	if s.addresses, err = s.newAddresses(); err != nil {
		return err
	}
	b := &builder{
		options: restOptions{store: s.cfg.Store}, components: s.componentServers, agents: agents{s.cfg}, proxy: podTransport(), client: s.client, tokens: tokens,
		addresses: s.addresses, nodePorts: s.nodePorts, authn: authn, authz: authz, rules: rules, quorum: s.quorum, bound: bound,
	}
	core, events := b.core()
	groups := []group{{"", v1(core)}}
	groups = append(groups, b.workload()...)
	groups = append(groups, b.cluster(events)...)
	groups = append(groups, b.auth()...)
	groups = append(groups, b.admission()...)
	groups = append(groups, b.certificates(), b.flowControl(), b.storageMigration())
	if b.err != nil {
		return fmt.Errorf("build registries: %w", b.err)
	}
	usage, scheme, err := s.metricsGroup()
	if err != nil {
		return err
	}
	definitions, err := s.definitionsGroup()
	if err != nil {
		return err
	}
	groups = append(groups, usage, definitions)

	in := newInstaller(s.codecs)
	in.schemes[usage.name], in.schemes[definitions.name] = scheme, customresources.Scheme()
	if groups, err = s.aggregate(in, groups); err != nil {
		return err
	}
	in.types, in.authz, in.admit, in.maxBody = s.types, authz, admit, s.cfg.MaxBodyBytes
	if err := in.install(groups); err != nil {
		return err
	}
	s.custom = s.customResources(in)
	mux, err := s.routes(in.route(s.custom.Discovery(in.container), s.custom), s.custom)
	if err != nil {
		return err
	}
	s.handler = s.filter(mux, authn, authz)
	return nil
}

// podTransport carries requests of the pod and service proxies. Their TLS
// certificates are the pods' own and cannot be verified, as in kube-apiserver.
func podTransport() http.RoundTripper {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.Proxy = nil
	t.DialContext = (&net.Dialer{Timeout: 10 * time.Second}).DialContext
	t.MaxIdleConns, t.IdleConnTimeout = 10, 30*time.Second
	return t
}

// Handler is the API with all its filters. Client certificates are read from
// the request's TLS state, so the listener must ask for them
// (tls.RequestClientCert) and leave their verification to the API.
func (s *Server) Handler() http.Handler { return s.handler }

// Informers is the one shared informer factory of this process, fed by this
// peer. Ask it for informers and listers, then call [Server.StartInformers];
// never its own Start with a shorter-lived channel, because an informer that
// has stopped cannot be started again.
func (s *Server) Informers() informers.SharedInformerFactory { return s.factory }

// StartInformers starts what has been asked of [Server.Informers] since. Before
// Run it does nothing: Run starts all.
func (s *Server) StartInformers() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.running {
		s.factory.Start(s.life.Done())
	}
}

// Run starts the informers, makes the API ready when they have synced, and
// blocks until ctx ends and every request has. It may be called once. The
// handler may be served from before Run until after it.
func (s *Server) Run(ctx context.Context) error {
	s.mu.Lock()
	if s.running || s.closing {
		s.mu.Unlock()
		return errors.New("apiserver can run only once")
	}
	s.running = true
	feed(s.graph, s.factory)
	s.factory.Start(s.life.Done())
	s.mu.Unlock()
	custom := make(chan error, 1)
	go func() { custom <- s.custom.Run(s.life) }()

	for kind, ok := range s.factory.WaitForCacheSync(ctx.Done()) {
		if !ok && ctx.Err() == nil {
			s.shutdown()
			return errors.Join(fmt.Errorf("sync informer of %v", kind), <-custom)
		}
	}
	if err := s.extensions.Load(); err != nil {
		s.shutdown()
		return errors.Join(err, <-custom)
	}
	var following sync.WaitGroup
	following.Go(func() { s.extensions.Run(s.life) })
	defer following.Wait()
	if ctx.Err() == nil {
		s.types.parse()
		debug.FreeOSMemory()
		s.mu.Lock()
		s.synced = true
		s.mu.Unlock()
		s.cfg.Logger.Info("api ready")
	}
	select {
	case <-ctx.Done():
		s.shutdown()
		return <-custom
	case err := <-custom:
		s.shutdown()
		return err
	}
}

// shutdownGrace bounds the wait for requests at the end: a write that waits for
// quorum takes five seconds.
const shutdownGrace = 8 * time.Second

func (s *Server) shutdown() {
	s.mu.Lock()
	s.closing, s.running, s.synced = true, false, false
	s.mu.Unlock()
	s.end()
	s.factory.Shutdown()
	done := make(chan struct{})
	go func() { s.requests.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(shutdownGrace):
		s.cfg.Logger.Warn("requests did not end in time")
	}
}

// enter counts a request in, unless the server is closing.
func (s *Server) enter() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing {
		return false
	}
	s.requests.Add(1)
	return true
}

var errClosing = errors.New("shutting down")

// Ready is nil when the API can serve everybody: informers have synced and
// requests are taken. It says nothing of quorum, because a peer without it
// still answers reads.
func (s *Server) Ready() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closing:
		return errClosing
	case !s.synced:
		return errors.New("informers have not synced")
	}
	return nil
}

// quorum returns a 503 that says who is missing when the store cannot agree.
func (s *Server) quorum(ctx context.Context) error {
	err := s.cfg.Store.Sync(ctx)
	var missing *raftstore.NoQuorumError
	if errors.As(err, &missing) {
		return apierrors.NewServiceUnavailable(missing.Error())
	}
	return err
}
