package apifuzz

import (
	"fmt"
	"net/http"
	"strings"
)

const (
	asJSON     = "application/json"
	asYAML     = "application/yaml"
	asProtobuf = "application/vnd.kubernetes.protobuf"
	asCBOR     = "application/cbor"
	jsonPatch  = "application/json-patch+json"
	mergePatch = "application/merge-patch+json"
	strategic  = "application/strategic-merge-patch+json"
	applyYAML  = "application/apply-patch+yaml"
	applyCBOR  = "application/apply-patch+cbor"
)

// headers sets what a client says beside the request itself.
func (g *generator) headers(d *dice, c *call) {
	if d.oneIn(3) {
		c.header.Set("Accept", pick(d, []string{
			asJSON, asYAML, asProtobuf, asCBOR, "*/*", "application/*", "text/html", "", ",,;;q=", asJSON + ";q=NaN",
			"application/json;as=Table;v=v1;g=meta.k8s.io", "application/json;as=Table;v=v1;g=meta.k8s.io,application/json", "application/json;as=Table;v=v1beta1;g=meta.k8s.io",
			"application/json;as=Table;v=v9;g=meta.k8s.io", "application/vnd.kubernetes.protobuf;as=Table;v=v1;g=meta.k8s.io", "application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io",
			"application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io", "application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io", "application/json;as=Pod;v=v1;g=",
			"application/json;stream=watch", "application/vnd.kubernetes.protobuf;stream=watch", "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList", "application/json;g=apidiscovery.k8s.io;v=v3;as=APIGroupDiscoveryList",
			"application/json;profile=x;as=Table", strings.Repeat("application/json,", 3000),
		}))
	}
	if d.oneIn(8) {
		c.header.Set("Accept-Encoding", pick(d, []string{"gzip", "gzip;q=0", "br", "identity;q=0", "*"}))
	}
	if d.oneIn(12) {
		d.strange(c.header)
	}
}

// strange sets up to three headers that most clients never send.
func (d *dice) strange(h http.Header) {
	all := []struct {
		name   string
		values []string
	}{
		{"Impersonate-User", []string{"alice", "system:node:f0", "system:serviceaccount:default:default", "system:anonymous", "", "\u00fc"}},
		{"Impersonate-Group", []string{"system:masters", "system:nodes", "people", ""}},
		{"Impersonate-Uid", []string{"1", ""}},
		{"Impersonate-Extra-Scopes", []string{"a", ""}},
		{"Impersonate-Extra-%zz%00%2f", []string{"a"}},
		{"X-Remote-User", []string{"root"}},
		{"X-Remote-Group", []string{"system:masters"}},
		{"X-Http-Method-Override", []string{"DELETE"}},
		{"Audit-Id", []string{"x", strings.Repeat("i", 5000), "a\tb"}},
		{"If-Match", []string{"*"}},
		{"If-None-Match", []string{`"x"`}},
		{"If-Modified-Since", []string{"Thu, 01 Jan 1970 00:00:00 GMT"}},
		{"Range", []string{"bytes=0-1", "bytes=-9999999999"}},
		{"Origin", []string{"http://evil"}},
		{"Content-Encoding", []string{"gzip", "deflate"}},
		{"Expect", []string{"100-continue"}},
		{"Traceparent", []string{"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "x"}},
		{"X-Forwarded-For", []string{"127.0.0.1", "::::"}},
		{"User-Agent", []string{"Mozilla/5.0", "kubectl/v0", strings.Repeat("u", 10000), ""}},
		{"Authorization", []string{"Basic YTpi", "Bearer", "Bearer  x", "bearer a.b.c", "Bearer " + strings.Repeat("t", 50000), "Bearer eyJhbGciOiJub25lIn0.eyJpc3MiOiJodHRwczovL2t1YmVybmV0ZXMuZGVmYXVsdC5zdmMifQ."}},
		{"Sec-Websocket-Protocol", []string{"base64url.bearer.authorization.k8s.io.eHg", "base64url.bearer.authorization.k8s.io.!"}},
		{"Kubernetes-Unknown", []string{"x"}},
		{strings.Repeat("X-Long-", 1000), []string{"x"}},
	}
	for range 1 + d.IntN(3) {
		one := pick(d, all)
		h.Set(one.name, pick(d, one.values))
	}
}

// upgrade asks to turn the connection into a stream, as exec and port-forward do.
func (d *dice) upgrade(c *call) {
	if c.second || d.oneIn(3) {
		return
	}
	c.header.Set("Connection", "Upgrade")
	if d.oneIn(2) {
		c.header.Set("Upgrade", "SPDY/3.1")
		c.header.Set("X-Stream-Protocol-Version", pick(d, []string{"v4.channel.k8s.io", "v5.channel.k8s.io", "portforward.k8s.io", "nonsense", ""}))
		return
	}
	c.header.Set("Upgrade", pick(d, []string{"websocket", "websocket", "WebSocket", "h2c", "x"}))
	c.header.Set("Sec-Websocket-Version", pick(d, []string{"13", "8", "x"}))
	c.header.Set("Sec-Websocket-Key", pick(d, []string{"dGhlIHNhbXBsZSBub25jZQ==", "short", ""}))
	c.header.Set("Sec-Websocket-Protocol", pick(d, []string{"v5.channel.k8s.io", "v4.base64.channel.k8s.io", "channel.k8s.io", "v2.portforward.k8s.io", "SPDY/3.1+portforward.k8s.io", "", "x"}))
}

// authorize adds the caller's token, unless the request brings something of its own.
func (c caller) authorize(r *http.Request) {
	if c.token != "" && r.Header.Get("Authorization") == "" {
		r.Header.Set("Authorization", fmt.Sprintf("Bearer %s", c.token))
	}
}
