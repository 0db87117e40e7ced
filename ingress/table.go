package ingress

import (
	"cmp"
	"path"
	"slices"
	"strings"

	networkingv1 "k8s.io/api/networking/v1"
)

// table says where requests go. It is never changed.
type table struct {
	exact, wildcard map[string]*site // by host; by what follows "*."
	any             *site            // rules without a host
	fallback        *route           // nil: 404
	certs           map[string]certRef
	used            map[string]bool // Services, NAMESPACE/NAME
}

// site is what is under one host.
type site struct {
	routes   []*route // the one that decides first
	fallback *route   // the default backend of an Ingress with this host; may be nil
	tls      bool
}

// route is one path of one Ingress.
type route struct {
	exact   bool
	path    string // without a slash at the end, unless exact
	ingress string // NAMESPACE/NAME
	backend *backend
	options options
}

// problem is what an Ingress asks for that cannot be had.
type problem struct {
	ingress *networkingv1.Ingress
	message string
}

// builder makes a table. backend finds what a reference leads to; it never returns nil.
type builder struct {
	defaults options
	backend  func(namespace string, ref networkingv1.IngressBackend, p protocol) (*backend, error)
	table    *table
	problems []problem
}

// build makes the table of these Ingresses. Where two claim the same host and path, the
// older one has it.
func (b *builder) build(ingresses []*networkingv1.Ingress) {
	b.table = &table{exact: map[string]*site{}, wildcard: map[string]*site{}, any: &site{}, certs: map[string]certRef{}, used: map[string]bool{}}
	ingresses = slices.Clone(ingresses)
	slices.SortFunc(ingresses, older)
	for _, ing := range ingresses {
		b.add(ing)
	}
	for _, s := range b.table.sites() {
		slices.SortStableFunc(s.routes, before)
	}
}

func older(a, b *networkingv1.Ingress) int {
	return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name))
}

// before is upstream's precedence: the longest path, and of two that are equal Exact.
func before(a, b *route) int {
	if c := cmp.Compare(len(b.path), len(a.path)); c != 0 {
		return c
	}
	if a.exact != b.exact {
		if a.exact {
			return -1
		}
		return 1
	}
	return 0
}

func (t *table) sites() []*site {
	out := []*site{t.any}
	for _, m := range []map[string]*site{t.exact, t.wildcard} {
		for _, s := range m {
			out = append(out, s)
		}
	}
	return out
}

func (b *builder) add(ing *networkingv1.Ingress) {
	opts, errs := parseOptions(ing, b.defaults)
	for _, err := range errs {
		b.problem(ing, err.Error())
	}
	var fallback *route
	if ing.Spec.DefaultBackend != nil {
		fallback = b.route(ing, *ing.Spec.DefaultBackend, opts)
		if b.table.fallback == nil {
			b.table.fallback = fallback
		}
	}
	for _, rule := range ing.Spec.Rules {
		s := b.table.site(rule.Host)
		if s.fallback == nil && rule.Host != "" {
			s.fallback = fallback
		}
		if rule.HTTP == nil {
			continue // all of the host is the default backend's
		}
		for _, p := range rule.HTTP.Paths {
			r := b.route(ing, p.Backend, opts)
			r.path = p.Path
			if r.exact = p.PathType != nil && *p.PathType == networkingv1.PathTypeExact; !r.exact {
				r.path = strings.TrimRight(p.Path, "/") // ImplementationSpecific is Prefix here
			}
			if slices.ContainsFunc(s.routes, func(have *route) bool { return have.exact == r.exact && have.path == r.path }) {
				b.problem(ing, "host "+orAny(rule.Host)+", path "+p.Path+": an older Ingress has it already")
				continue
			}
			s.routes = append(s.routes, r)
		}
	}
	b.certificates(ing)
}

// certificates notes which hosts have TLS, and whose certificate.
func (b *builder) certificates(ing *networkingv1.Ingress) {
	for _, t := range ing.Spec.TLS {
		hosts := t.Hosts
		if len(hosts) == 0 {
			for _, rule := range ing.Spec.Rules {
				hosts = append(hosts, rule.Host)
			}
		}
		for _, host := range hosts {
			host = strings.ToLower(host)
			if s := b.table.find(host); s != nil {
				s.tls = true
			}
			if _, have := b.table.certs[host]; !have && t.SecretName != "" {
				b.table.certs[host] = certRef{ing.Namespace, t.SecretName}
			}
		}
	}
}

func (b *builder) route(ing *networkingv1.Ingress, ref networkingv1.IngressBackend, opts options) *route {
	to, err := b.backend(ing.Namespace, ref, opts.protocol)
	if err != nil {
		b.problem(ing, err.Error())
	}
	if ref.Service != nil {
		b.table.used[ing.Namespace+"/"+ref.Service.Name] = true
	}
	return &route{ingress: ing.Namespace + "/" + ing.Name, backend: to, options: opts}
}

func (b *builder) problem(ing *networkingv1.Ingress, message string) {
	b.problems = append(b.problems, problem{ing, message})
}

// site returns the one of a rule's host, made if need be.
func (t *table) site(host string) *site {
	host = strings.ToLower(host)
	if host == "" {
		return t.any
	}
	in := t.exact
	if parent, ok := strings.CutPrefix(host, "*."); ok {
		in, host = t.wildcard, parent
	}
	if in[host] == nil {
		in[host] = &site{}
	}
	return in[host]
}

// find returns the site that a rule's host names, nil if no rule does.
func (t *table) find(host string) *site {
	if host == "" {
		return t.any
	}
	if parent, ok := strings.CutPrefix(host, "*."); ok {
		return t.wildcard[parent]
	}
	return t.exact[host]
}

// match finds the route of a request; nil if no rule has it. tls says that the host is
// to be reached by TLS. host is in lower case, without port; p is the decoded path.
func (t *table) match(host, p string) (r *route, tls bool) {
	_, parent, _ := strings.Cut(host, ".")
	p = clean(p)
	var fallback *route
	for _, s := range []*site{t.exact[host], t.wildcard[parent], t.any} {
		if s == nil {
			continue
		}
		tls = tls || s.tls
		for _, r := range s.routes {
			if r.matches(p) {
				return r, tls
			}
		}
		if fallback == nil {
			fallback = s.fallback
		}
	}
	if fallback == nil {
		fallback = t.fallback
	}
	return fallback, tls
}

// known tells whether there is a rule for a host; pattern is the rule's own.
func (t *table) known(host string) (pattern string, ok bool) {
	if t.exact[host] != nil {
		return host, true
	}
	if _, parent, cut := strings.Cut(host, "."); cut && t.wildcard[parent] != nil {
		return "*." + parent, true
	}
	return "", false
}

// matches is upstream's: Prefix is by whole elements of the path.
func (r *route) matches(p string) bool {
	if r.exact {
		return p == r.path
	}
	rest, ok := strings.CutPrefix(p, r.path)
	return ok && (rest == "" || rest[0] == '/')
}

// clean resolves what a request's path may hide in dots and double slashes, so that no
// rule is got around with them. A slash at its end stays.
func clean(p string) string {
	out := path.Clean("/" + p)
	if strings.HasSuffix(p, "/") && out != "/" {
		out += "/"
	}
	return out
}

func orAny(host string) string {
	if host == "" {
		return "*"
	}
	return host
}
