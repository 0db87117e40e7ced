package apifuzz

import (
	"bytes"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/yaml"
)

// call is one request.
type call struct {
	id     uint64
	caller string
	second bool   // HTTP/2
	raw    []byte // sent as it is instead of all below
	method string
	target string // path and query, as they are sent
	header http.Header
	body   []byte
	// patience is when the caller gives up; lasting requests are not expected to end before.
	patience time.Duration
	lasting  bool
}

func (c call) String() string {
	if c.raw != nil {
		return fmt.Sprintf("request %d: raw, by %s: %s", c.id, c.caller, excerpt(c.raw))
	}
	protocol := "HTTP/1.1"
	if c.second {
		protocol = "HTTP/2"
	}
	return fmt.Sprintf("request %d: %s %s %s by %s\n%s\n%d bytes: %s", c.id, c.method, excerpt([]byte(c.target)), protocol, c.caller, excerpt(fmt.Append(nil, c.header)), len(c.body), excerpt(c.body))
}

func excerpt(b []byte) string {
	if len(b) > 3000 {
		return fmt.Sprintf("%q…", b[:3000])
	}
	return fmt.Sprintf("%q", b)
}

//go:embed testdata/samples.yaml
var files embed.FS

// generator makes requests. What it makes depends on the seed, the number and the
// shape of the server alone, so that it may be called concurrently.
type generator struct {
	*shape
	seed    uint64
	samples map[schema.GroupVersionKind][]map[string]any
	kinds   []schema.GroupVersionKind // those of samples, in order
}

func newGenerator(s *shape, seed uint64) *generator {
	g := &generator{shape: s, seed: seed, samples: map[schema.GroupVersionKind][]map[string]any{}}
	data, err := files.ReadFile("testdata/samples.yaml")
	if err != nil {
		panic(err) // it is embedded
	}
	for d := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(data), 4096); ; {
		var object map[string]any
		err := d.Decode(&object)
		if errors.Is(err, io.EOF) {
			return g
		}
		if err != nil {
			panic(fmt.Sprintf("testdata/samples.yaml: %v", err))
		}
		version, _ := object["apiVersion"].(string)
		kind, _ := object["kind"].(string)
		gvk := schema.FromAPIVersionAndKind(version, kind)
		if g.samples[gvk] == nil {
			g.kinds = append(g.kinds, gvk)
		}
		g.samples[gvk] = append(g.samples[gvk], object)
	}
}

// sample copies a valid object of a kind; nil if there is none.
func (g *generator) sample(d *dice, kind schema.GroupVersionKind) map[string]any {
	all := g.samples[kind]
	if len(all) == 0 {
		return nil
	}
	return clone(pick(d, all)).(map[string]any)
}

func (g *generator) request(id uint64) call {
	d := &dice{rand.New(rand.NewPCG(g.seed, id))}
	c := call{id: id, header: http.Header{}, second: d.oneIn(2), patience: 15 * time.Second}
	c.caller = pick(d, []string{"admin", "admin", "admin", "admin", "admin", "admin", "admin", "admin", "admin", "admin", "admin", "admin", "admin", "admin", "admin", "peer", "peer", "user", "account", "account", "impostor", "anonymous"})
	switch n := d.IntN(100); {
	case n < 84:
		g.resource(d, &c)
	case n < 96:
		g.path(d, &c)
	default:
		g.rawRequest(d, &c)
	}
	if _, err := url.ParseRequestURI(c.target); err != nil || strings.HasPrefix(c.target, "//") {
		c.second = false // where it would not get as far as the server, or be asked again and again
	}
	return c
}

// resource asks for something of an endpoint.
func (g *generator) resource(d *dice, c *call) {
	e := pick(d, g.endpoints)
	if d.oneIn(3) { // what has subresources and stays is where most code is
		for i := 0; i < 5 && e.subresource == "" == d.oneIn(2); i++ {
			e = pick(d, g.endpoints)
		}
	}
	verb := pick(d, []string{"create", "create", "create", "update", "update", "patch", "patch", "patch", "get", "list", "watch", "delete", "deletecollection"})
	if verb == "deletecollection" && !d.oneIn(5) { // or little would be left
		verb = "create"
	}
	if !slices.Contains(e.verbs, verb) && !d.oneIn(6) {
		verb = pick(d, e.verbs)
	}
	namespace, name := d.namespace(), d.name()
	if e.namespaced && verb == "list" && d.oneIn(3) {
		namespace = ""
	}
	bare := e
	if collection := verb == "create" || verb == "list" || verb == "watch" || verb == "deletecollection"; collection && e.subresource == "" && !d.oneIn(20) {
		name = ""
	}
	if name == "" && !d.oneIn(20) {
		bare.subresource = ""
	}
	c.method = map[string]string{"create": "POST", "update": "PUT", "patch": "PATCH", "get": "GET", "list": "GET", "watch": "GET", "delete": "DELETE", "deletecollection": "DELETE"}[verb]
	if d.oneIn(40) {
		c.method = pick(d, []string{"HEAD", "OPTIONS", "TRACE", "CONNECT", "POST", "PUT", "PATCH", "BREW", "get"})
	}
	c.target = escape(d, bare.path(namespace, name))
	query := g.query(d, verb, e)
	if verb == "watch" || e.connects() {
		c.lasting, c.patience = true, 300*time.Millisecond
	}
	if e.connects() {
		c.target += d.suffix(e)
		d.upgrade(c)
	}
	if len(query) > 0 {
		c.target += "?" + query
	}
	g.headers(d, c)
	g.fill(d, c, verb, e, namespace, name)
}

// connects tells subresources that are streams.
func (e endpoint) connects() bool {
	return slices.Contains([]string{"exec", "attach", "portforward", "proxy", "log"}, e.subresource)
}

func encode(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("encode %v: %v", v, err)) // it is made of JSON's own types
	}
	return b
}
