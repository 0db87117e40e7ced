package apiserver

import (
	"context"
	"fmt"
	"net/http"
	"path"

	"k8s.io/apimachinery/pkg/runtime"
	ktypes "k8s.io/apimachinery/pkg/types"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/apiserver/pkg/registry/rest"
	api "k8s.io/kubernetes/pkg/apis/core"
	noderest "k8s.io/kubernetes/pkg/registry/core/node/rest"
)

// AgentPath is below what a peer's port serves the whole of its agent to other
// peers: /api/v1/nodes/NAME/proxy/PATH asks for AgentPath + PATH there.
const AgentPath = "/agent"

// nodeProxy keeps those who may use the node proxy to the agent. On the peer port
// the agent has neighbours, the API among them, and the request is made with this
// peer's certificate: without the prefix it could be for anything that a peer may do.
type nodeProxy struct {
	*noderest.ProxyREST
	agents agents
}

func (p *nodeProxy) Connect(ctx context.Context, id string, opts runtime.Object, responder rest.Responder) (http.Handler, error) {
	o, ok := opts.(*api.NodeProxyOptions)
	if !ok {
		return nil, fmt.Errorf("options of a node proxy are %T", opts)
	}
	to := *o
	if _, name, port, ok := utilnet.SplitSchemeNamePort(id); ok {
		info, err := p.agents.GetConnectionInfo(ctx, ktypes.NodeName(name))
		if err != nil {
			return nil, err
		}
		// Any other port is reached without a certificate.
		if port == "" || port == info.Port {
			to.Path = AgentPath + path.Clean("/"+to.Path)
		}
	}
	return p.ProxyREST.Connect(ctx, id, &to, responder)
}
