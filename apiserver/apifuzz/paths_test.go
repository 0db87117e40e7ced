package apifuzz

import (
	"bytes"
	"fmt"
	"strings"
	"time"
)

// path asks for what is no resource: documents, discovery, health, and places that
// do not exist.
func (g *generator) path(d *dice, c *call) {
	c.method = pick(d, []string{"GET", "GET", "GET", "GET", "GET", "HEAD", "OPTIONS", "POST", "PUT", "DELETE", "PATCH", "TRACE", "BREW"})
	e := pick(d, g.endpoints)
	gv := "/apis/" + e.group.String()
	if e.group.Group == "" {
		gv = "/api/v1"
	}
	c.target = pick(d, []string{
		"/", "/api", "/apis", gv, gv + "/", "/apis/" + e.group.Group, "/apis/nope.example.com", "/apis/nope.example.com/v1/things", "/apis/nope.example.com/v1/namespaces/default/things/f0",
		"/version", "/healthz", "/livez", "/readyz", "/readyz/ping", "/readyz?verbose&exclude=x", "/livez/nope", "/metrics", "/openapi/v2", "/openapi/v3", pick(d, g.documents), pick(d, g.documents) + "?hash=x", "/openapi/v3/../v2", "/openapi/v3/apis/nope/v1", "/openapi/", "/openapi/v3/docs/",
		"/.well-known/openid-configuration", "/openid/v1/jwks", "/logs", "/debug/pprof/", "/swagger.json", "/ui", "/api/v1/watch/pods", "/api/v1/watch/namespaces/default/pods/f0", "/api/v1/proxy/nodes/f0", "/api/v1/namespaces/default/pods/http:f0:80/proxy", "/api/v1/namespaces/default/services/https:f0:x/proxy/a", "/api/v1/nodes/f0:10250/proxy/", "/api/v2", "/api/v1/pods/f0",
		"//", "/api//v1/pods", "/apis/apps/v1/namespaces//deployments", "/%61pi/v1/pods", "/API/V1/pods", "/api/v1/namespaces/default/pods/f0/exec/more", "/apis/apps/v1/deployments/f0/scale/x/y/z", "/" + strings.Repeat("a/", 4000), "/api/v1/" + strings.Repeat("x", 9000), "/rookery/v1/status", "/exec/a/b/c", "/apis/metrics.k8s.io/v1beta1/nodes", "/apis/metrics.k8s.io/v1beta1/namespaces/default/pods/f0",
		"/api/v1/namespaces/default/pods?watch=1&timeoutSeconds=1&" + d.word() + "=x",
	})
	if d.oneIn(5) {
		c.target = escape(d, c.target)
	}
	if strings.Contains(c.target, "watch") || strings.Contains(c.target, "proxy") || strings.Contains(c.target, "exec") {
		c.lasting, c.patience = true, 300*time.Millisecond
	}
	g.headers(d, c)
	if d.oneIn(4) {
		c.header.Set("Accept", pick(d, []string{"application/com.github.proto-openapi.spec.v3.v1.0+protobuf", "application/com.github.proto-openapi.spec.v2@v1.0+protobuf", "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json"}))
	}
	if c.method == "POST" || d.oneIn(20) {
		c.body = encode(d.anything(4))
		d.spoil(c)
	}
}

// rawRequest writes bytes that no client library would send.
func (g *generator) rawRequest(d *dice, c *call) {
	e := pick(d, g.endpoints)
	path := (e.path("default", "f0"))
	body := `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"f0"}}`
	head := "POST " + path + " HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
	c.raw = []byte(pick(d, []string{
		head + "Content-Length: 1000000\r\n\r\n" + body,
		head + "Content-Length: -1\r\n\r\n" + body,
		head + "Content-Length: 5\r\nContent-Length: 6\r\n\r\n" + body,
		head + "Transfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n" + body,
		head + "Transfer-Encoding: chunked\r\n\r\n3f\r\n" + body + "\r\n0\r\nX-Trailer: a\r\n\r\n",
		head + "Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n1\r\na\r\n0\r\n\r\n",
		head + "Expect: 100-continue\r\nContent-Length: 60\r\n\r\n",
		head + strings.Repeat("A: b\r\n", 20000) + "\r\n",
		"GET " + path + "?watch=1 HTTP/1.1\r\nHost: x\r\n\r\nGET /livez HTTP/1.1\r\nHost: x\r\n\r\n",
		"GET " + path + " HTTP/1.0\r\n\r\n", "GET " + path + "\r\n\r\n", "GET http://other" + path + " HTTP/1.1\r\nHost: y\r\n\r\n", "GET * HTTP/1.1\r\nHost: x\r\n\r\n", "OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n",
		"GET " + path + " HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n\r\n",
		"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + strings.Repeat("\x00\x00\x00\x04\x00\x00\x00\x00\x00", 100),
		"GET /api/v1/namespaces/default/pods/f0/exec?command=ls HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: v5.channel.k8s.io\r\n\r\n\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
		"\x16\x03\x01", "\x00", strings.Repeat("A", 2<<20),
	}))
	if d.oneIn(3) {
		c.raw = d.garble(c.raw)
	}
	if t := fmt.Sprintf("Authorization: Bearer %s\r\nHost:", "TOKEN"); d.oneIn(2) {
		c.raw = bytes.Replace(c.raw, []byte("Host:"), []byte(t), 1)
	}
	c.lasting, c.patience = true, 500*time.Millisecond
}
