package apifuzz

import (
	"encoding/base64"
	"net/url"
	"strconv"
	"strings"
)

// query makes the options of a request.
func (g *generator) query(d *dice, verb string, e endpoint) string {
	q := url.Values{}
	add := func(one int, key string, values ...string) {
		if d.oneIn(one) {
			q.Add(key, pick(d, values))
		}
	}
	if !d.oneIn(3) && !e.connects() { // a wrong option is refused before anything else is looked at
		if verb == "watch" {
			return pick(d, []string{"watch=true&timeoutSeconds=1", "watch=1&allowWatchBookmarks=true", "watch=1&resourceVersionMatch=NotOlderThan&sendInitialEvents=true&allowWatchBookmarks=true"})
		}
		return pick(d, []string{"", "", "", "dryRun=All", "fieldValidation=Strict", "limit=1"})
	}
	switch verb {
	case "list", "watch", "deletecollection":
		d.listOptions(add)
	}
	switch verb {
	case "watch":
		q.Set("watch", pick(d, []string{"true", "1", "yes", ""}))
		q.Set("timeoutSeconds", pick(d, []string{"1", "0", "-1", "99999999999", "x"}))
	case "create", "update", "patch", "delete", "deletecollection":
		add(6, "dryRun", "All", "All", "all", "", "None")
		add(4, "fieldManager", "fuzz", "other", "", strings.Repeat("m", 129), "\u00fc\x00")
		add(4, "fieldValidation", "Strict", "Warn", "Ignore", "Maybe")
		add(4, "force", "true", "false", "x")
		add(8, "gracePeriodSeconds", "0", "1", "-1", "9223372036854775807", "x")
		add(8, "propagationPolicy", "Foreground", "Background", "Orphan", "Never")
		add(8, "orphanDependents", "true", "x")
		add(12, "ignoreStoreReadErrorWithClusterBreakingPotential", "true", "x")
	case "get":
		add(5, "resourceVersion", revisions()...)
	}
	if e.connects() {
		add(2, "container", "main", "init", "\x00", "none")
		add(2, "command", "ls", "", strings.Repeat("c", 5000))
		add(2, "stdin", "true", "x")
		add(2, "stdout", "true", "0")
		add(3, "tty", "true")
		add(3, "tailLines", "1", "-1", "9223372036854775807", "x")
		add(3, "sinceTime", "2026-01-02T03:04:05Z", "now")
		add(3, "limitBytes", "1", "0", "-5")
		add(3, "follow", "true")
		add(3, "stream", "Stdout", "All", "x")
		add(3, "ports", "80", "0", "70000", "a,b", "80,81,82")
		add(3, "path", "/", "../..", "//x", "%00")
	}
	add(8, "pretty", "true", "1", "x")
	add(12, "timeout", "1s", "0s", "-1s", "1h", "1ns", "never")
	add(12, "includeObject", "None", "Metadata", "Object", "x")
	add(20, d.word(), d.odd())
	encoded := q.Encode()
	if d.oneIn(40) {
		encoded += pick(d, []string{"&%zz", ";", "&&&===", "&watch=true&watch=false", "&limit=1&limit=2", "&" + strings.Repeat("a=b&", 5000)})
	}
	return encoded
}

func (d *dice) listOptions(add func(int, string, ...string)) {
	add(3, "labelSelector", "app=web", "a in (b,c),!d", "a notin ()", "a=b=c", "!!a", "a in (", "=", ",,,", "a>1,b<x", strings.Repeat("a,", 20000)+"a", "x in ("+strings.Repeat("v,", 20000)+"v)", "ü=ü", "a="+strings.Repeat("v", 64), "\x00", "((((")
	add(3, "fieldSelector", "metadata.name=f0", "metadata.name!=f0,metadata.namespace=default", "spec.nodeName=f0", "status.phase=Running", "spec.nope=1", "metadata.name", "metadata.name=a\\,b\\=c\\", "=", "involvedObject.name=f0", "metadata.name="+strings.Repeat("n", 9000), "type=Opaque", "spec.clusterIP=None", "metadata.name==f0,metadata.name==f1", "\x00=\x00")
	add(3, "limit", "1", "2", "0", "-1", "9223372036854775807", "99999999999999999999", "x")
	add(4, "continue", d.token(), d.token(), "x", "", "e30", strings.Repeat("A", 9000))
	add(3, "resourceVersion", revisions()...)
	add(4, "resourceVersionMatch", "Exact", "NotOlderThan", "exact", "")
	add(4, "sendInitialEvents", "true", "false", "x")
	add(4, "allowWatchBookmarks", "true", "false", "x")
	add(8, "timeoutSeconds", "1", "0", "-1", "9223372036854775807", "x")
	add(8, "shardSelector", "shardRange(object.metadata.uid, '0x0', '0x8')", "x", "shardRange(")
}

func revisions() []string {
	return []string{"0", "1", "100", "", "-1", "x", "18446744073709551615", "18446744073709551616", "9223372036854775807", "9223372036854775806", "1e3", "0x10", "00", " 1"}
}

// token is a continue token as the server would make it, with other things in it.
func (d *dice) token() string {
	start := pick(d, []string{"default/f0\u0000", "f1\u0000", "", "/", "../../secrets/default/", "\u0000", "default/" + strings.Repeat("z", 500), "~", "\uffff"})
	version := pick(d, []string{"meta.k8s.io/v1", "meta.k8s.io/v1", "meta.k8s.io/v1", "meta.k8s.io/v2", ""})
	revision := pick(d, []string{"1", "20", "-1", "0", "9223372036854775807", "99999999999999999999", strconv.Itoa(d.IntN(2000))})
	return base64.RawURLEncoding.EncodeToString([]byte(`{"v":"` + version + `","rv":` + revision + `,"start":` + string(encode(start)) + `}`))
}

// escape writes a path so that it can be sent, and odd ways of writing it stay odd.
func escape(d *dice, path string) string {
	escaped := (&url.URL{Path: path}).EscapedPath()
	if d.oneIn(40) {
		escaped = pick(d, []string{"//", "/./", "/../", "/%2e%2e", "/%2F", "/\xff", ";x=y/"}) + strings.TrimPrefix(escaped, "/")
	}
	if d.oneIn(60) {
		escaped += pick(d, []string{"/", "//", "%00", "/..", "?", "#x", "/f0/f0/f0", "%", "%zz", "/proxy/x:80/"})
	}
	if !strings.HasPrefix(escaped, "/") {
		escaped = "/" + escaped
	}
	return escaped
}

// suffix is the part of a path behind a proxy.
func (d *dice) suffix(e endpoint) string {
	if e.subresource != "proxy" {
		return ""
	}
	return pick(d, []string{"", "/", "/a/b", "/../../x", "/%2e%2e/%2e%2e", "//127.0.0.1/", "/\xff", "/@evil"})
}
