package apiserver_test

import (
	"bufio"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	clientrest "k8s.io/client-go/rest"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"

	"github.com/rundigitalplatform/rookery/apiserver"
	"github.com/rundigitalplatform/rookery/raftstore"
)

const extensionPath = "/apis/ext.example.com/v1/namespaces/default/widgets"

func get(t *testing.T, c kubernetes.Interface, path string) ([]byte, error) {
	t.Helper()
	answer := c.CoreV1().RESTClient().Get().AbsPath(path).SetHeader("Accept", "application/json").Do(t.Context())
	if err := answer.Error(); err != nil { // Raw's has no text of the server's
		return nil, err
	}
	return answer.Raw()
}

// widgetsSeen tells whether discovery has the extension's kind, in both its forms.
func widgetsSeen(t *testing.T, c kubernetes.Interface) (aggregated, old bool) {
	t.Helper()
	_, lists, err := c.Discovery().ServerGroupsAndResources()
	if err != nil {
		return false, false
	}
	for _, l := range lists {
		aggregated = aggregated || l.GroupVersion == "ext.example.com/v1" && len(l.APIResources) == 1 && l.APIResources[0].Kind == "Widget"
	}
	var groups metav1.APIGroupList
	raw, err := get(t, c, "/apis")
	if err != nil || json.Unmarshal(raw, &groups) != nil {
		t.Fatalf("/apis: %v", err)
	}
	old = slices.ContainsFunc(groups.Groups, func(g metav1.APIGroup) bool {
		return g.Name == "ext.example.com" && g.PreferredVersion.Version == "v1" && len(g.Versions) == 1
	})
	return aggregated, old
}

func TestExtension(t *testing.T) {
	proxy, store := newFrontProxy(t), raftstore.NewMemory()
	p := start(t, store, proxy.shown)
	p.leads(t)
	e := serveExtension(t, "ext.example.com", proxy.CA)
	e.register(t, p)
	p.becomes(t, "v1.ext.example.com", "True Passed")
	ctx, open := t.Context(), p.listen(t)
	eventually(t, "the peer has heard of it", func() bool { _, err := get(t, p.admin, "/apis/ext.example.com/v1"); return err == nil })
	e.forget()

	as := func(name string, groups ...string) *clientrest.Config {
		cfg := clientrest.CopyConfig(open)
		cfg.TLSClientConfig = p.ca.sign(t, time.Now().Add(time.Hour), name, groups...)
		return cfg
	}
	t.Run("only who may", func(t *testing.T) {
		jane := client(t, as("jane", "devs"))
		if _, err := get(t, jane, extensionPath); !apierrors.IsForbidden(err) {
			t.Fatalf("without a role: %v, want 403", err)
		}
		if e.asker() != nil {
			t.Fatalf("the extension was asked for somebody who may not: %v", e.asker())
		}
		role := &rbacv1.Role{ObjectMeta: metav1.ObjectMeta{Name: "widgets"}, Rules: []rbacv1.PolicyRule{{APIGroups: []string{"ext.example.com"}, Resources: []string{"widgets"}, Verbs: []string{"list"}}}}
		grant := &rbacv1.RoleBinding{ObjectMeta: metav1.ObjectMeta{Name: "widgets"}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: "widgets"}, Subjects: []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: "Group", Name: "devs"}}}
		if _, err := p.admin.RbacV1().Roles("default").Create(ctx, role, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		if _, err := p.admin.RbacV1().RoleBindings("default").Create(ctx, grant, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the role counts", func() bool { _, err := get(t, jane, extensionPath); return err == nil })
		if h := e.asker(); h.Get("X-Remote-User") != "jane" || !slices.Equal(h.Values("X-Remote-Group"), []string{"devs", "system:authenticated"}) || h.Get("Authorization") != "" {
			t.Errorf("asked as %v", h)
		}
		forged := jane.CoreV1().RESTClient().Get().AbsPath(extensionPath).SetHeader("X-Remote-User", "root").SetHeader("X-Remote-Group", "system:masters").SetHeader("X-Remote-Extra-a", "b")
		if _, err := forged.Do(ctx).Raw(); err != nil {
			t.Fatal(err)
		}
		if h := e.asker(); h.Get("X-Remote-User") != "jane" || slices.Contains(h.Values("X-Remote-Group"), "system:masters") || h.Get("X-Remote-Extra-A") != "" {
			t.Errorf("a client's own headers got through: %v", h)
		}
		if _, err := get(t, jane, extensionPath+"/slow"); !apierrors.IsForbidden(err) {
			t.Errorf("a verb that was not granted: %v, want 403", err)
		}
	})
	t.Run("impersonated", func(t *testing.T) {
		cfg := p.ClientConfig("admin", "system:masters")
		cfg.Impersonate = clientrest.ImpersonationConfig{UserName: "joe", Groups: []string{"devs"}, Extra: map[string][]string{"team": {"blue"}}}
		if _, err := get(t, client(t, cfg), extensionPath); err != nil {
			t.Fatal(err)
		}
		if h := e.asker(); h.Get("X-Remote-User") != "joe" || h.Get("X-Remote-Extra-Team") != "blue" {
			t.Errorf("asked as %v", h)
		}
	})
	t.Run("discovery and documents", func(t *testing.T) {
		if aggregated, old := widgetsSeen(t, p.admin); !aggregated || !old {
			t.Errorf("in the new form %t, in the old %t", aggregated, old)
		}
		raw, err := get(t, p.admin, "/apis/ext.example.com")
		if err != nil || !strings.Contains(string(raw), `"preferredVersion":{"groupVersion":"ext.example.com/v1"`) {
			t.Errorf("the group: %s, %v", raw, err)
		}
		paths, err := p.admin.Discovery().OpenAPIV3().Paths()
		if err != nil || paths["apis/ext.example.com/v1"] == nil || paths["apis/apps/v1"] == nil {
			t.Fatalf("index of documents: %v, %v", paths, err)
		}
		if doc, err := paths["apis/ext.example.com/v1"].Schema("application/json"); err != nil || !strings.Contains(string(doc), "widgets") {
			t.Errorf("document: %s, %v", doc, err)
		}
		if doc, err := paths["apis/apps/v1"].Schema("application/json"); err != nil || !strings.Contains(string(doc), "Deployment") {
			t.Errorf("an extension server has taken the place of apps/v1: %.80s, %v", doc, err)
		}
	})
	t.Run("a watch streams", func(t *testing.T) {
		stream, err := client(t, as("admin", "system:masters")).CoreV1().RESTClient().Get().AbsPath(extensionPath).Param("watch", "true").Stream(ctx)
		if err != nil {
			t.Fatal(err)
		}
		defer stream.Close()
		lines := bufio.NewScanner(stream)
		for i := range 3 {
			if !lines.Scan() || !strings.Contains(lines.Text(), fmt.Sprintf(`"n":%d`, i)) {
				t.Fatalf("event %d: %q, %v", i, lines.Text(), lines.Err())
			}
		}
	})
	t.Run("an upgrade", func(t *testing.T) { upgrade(t, as("admin", "system:masters")) })
	t.Run("after a restart, without a leader", func(t *testing.T) {
		again := start(t, store, proxy.shown)
		if _, err := get(t, again.admin, extensionPath); err != nil {
			t.Error(err)
		}
	})
	t.Run("removed", func(t *testing.T) {
		if err := p.apiServices(t).Delete(ctx, "v1.ext.example.com", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		eventually(t, "nobody serves it", func() bool { _, err := get(t, p.admin, extensionPath); return apierrors.IsNotFound(err) })
		eventually(t, "it is gone from discovery", func() bool {
			_, _, err := p.admin.Discovery().ServerGroupsAndResources() // whole again
			aggregated, old := widgetsSeen(t, p.admin)
			return err == nil && !aggregated && !old
		})
		if paths, err := p.admin.Discovery().OpenAPIV3().Paths(); err != nil || paths["apis/ext.example.com/v1"] != nil {
			t.Errorf("still in the index of documents: %v", err)
		}
		if _, err := get(t, p.admin, "/apis/ext.example.com"); !apierrors.IsNotFound(err) {
			t.Errorf("the group: %v, want 404", err)
		}
	})
}

// upgrade speaks another protocol with the extension, through the API.
func upgrade(t *testing.T, cfg *clientrest.Config) {
	t.Helper()
	pair, err := tls.X509KeyPair(cfg.CertData, cfg.KeyData)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := tls.Dial("tcp", strings.TrimPrefix(cfg.Host, "https://"), &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{pair}})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(conn, "POST %s/w/exec HTTP/1.1\r\nHost: api\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n", extensionPath)
	r := bufio.NewReader(conn)
	resp, err := http.ReadResponse(r, nil)
	if err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("%+v, %v", resp, err)
	}
	io.WriteString(conn, "hello\n")
	if line, err := r.ReadString('\n'); err != nil || line != "admin said hello\n" {
		t.Errorf("%q, %v", line, err)
	}
}

func TestExtensionThatDoesNotAnswer(t *testing.T) {
	proxy := newFrontProxy(t)
	p := start(t, raftstore.NewMemory(), proxy.shown, func(c *apiserver.Config) { c.RequestTimeout = 2 * time.Second })
	e := serveExtension(t, "ext.example.com", proxy.CA)
	e.old.Store(true)
	name := "v1.ext.example.com"

	e.register(t, p)
	eventually(t, "503, before the leader has looked", func() bool {
		_, err := get(t, p.admin, extensionPath)
		return apierrors.IsServiceUnavailable(err) && strings.Contains(err.Error(), "has not been checked yet")
	})
	p.leads(t)
	p.becomes(t, name, "True Passed")
	p.serves(t)
	if aggregated, old := widgetsSeen(t, p.admin); !aggregated || !old {
		t.Errorf("discovery of a server with the old form alone: %t, %t", aggregated, old)
	}

	began := time.Now()
	if _, err := get(t, p.admin, extensionPath+"/slow"); err == nil || time.Since(began) > 10*time.Second {
		t.Errorf("a slow answer: %v after %s", err, time.Since(began))
	}

	change := func(f func(*apiregistrationv1.APIServiceSpec)) {
		t.Helper()
		eventually(t, "changed", func() bool {
			s, err := p.apiServices(t).Get(t.Context(), name, metav1.GetOptions{})
			if err != nil {
				t.Fatal(err)
			}
			f(&s.Spec)
			_, err = p.apiServices(t).Update(t.Context(), s, metav1.UpdateOptions{})
			return err == nil
		})
	}
	unavailable := func(what, reason string) {
		t.Helper()
		p.becomes(t, name, "False "+reason)
		eventually(t, what+" is told", func() bool { // the peer hears of it as any watcher
			_, err := get(t, p.admin, extensionPath)
			return apierrors.IsServiceUnavailable(err) && strings.Contains(err.Error(), "ext.example.com/v1 is served by Service default/ext, which is not available: "+reason)
		})
		if _, _, err := p.admin.Discovery().ServerGroupsAndResources(); err == nil {
			t.Errorf("%s: discovery does not say that it is incomplete", what)
		}
	}
	other := serveExtension(t, "ext.example.com", proxy.CA)
	change(func(s *apiregistrationv1.APIServiceSpec) { s.CABundle = other.ca })
	unavailable("wrong certificate", "FailedDiscoveryCheck")
	change(func(s *apiregistrationv1.APIServiceSpec) { s.CABundle, s.InsecureSkipTLSVerify = nil, true })
	p.becomes(t, name, "True Passed")
	p.serves(t)

	change(func(s *apiregistrationv1.APIServiceSpec) { s.CABundle, s.InsecureSkipTLSVerify = e.ca, false })
	p.serves(t)
	e.down.Store(true)
	change(func(s *apiregistrationv1.APIServiceSpec) { s.VersionPriority++ }) // else it is looked at twice a minute
	unavailable("out of order", "FailedDiscoveryCheck")
	e.down.Store(false)
	p.becomes(t, name, "True Passed")
	p.serves(t)
	if aggregated, _ := widgetsSeen(t, p.admin); !aggregated {
		t.Error("it is back, and not in discovery")
	}

	e.CloseClientConnections()
	e.Close()
	if _, err := get(t, p.admin, extensionPath); !apierrors.IsServiceUnavailable(err) {
		t.Errorf("gone, and not noticed yet: %v, want 503", err)
	}
	if err := p.admin.CoreV1().Services("default").Delete(t.Context(), "ext", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	unavailable("no Service", "ServiceNotFound")
}

// serves waits until the peer has heard that the extension is available.
func (p *peer) serves(t *testing.T) {
	t.Helper()
	eventually(t, "it is served", func() bool { _, err := get(t, p.admin, extensionPath); return err == nil })
}

// A certificate of the users' CA is nobody's proxy, even with its name.
func TestUsersAreNoFrontProxy(t *testing.T) {
	proxy := newFrontProxy(t)
	e := serveExtension(t, "ext.example.com", proxy.CA)
	users := newAuthority(t)
	cfg := users.sign(t, time.Now().Add(time.Hour), "system:front-proxy", "system:masters")
	c := client(t, &clientrest.Config{Host: e.URL, TLSClientConfig: cfg})
	if _, err := get(t, c, extensionPath); !apierrors.IsUnauthorized(err) {
		t.Errorf("%v, want 401", err)
	}
}

// followed is a view of informers that tells whether anybody asked for one.
type followed struct {
	informers.SharedInformerFactory
	t *testing.T
}

func (w followed) Start(<-chan struct{}) { w.t.Error("informers are started for no extension") }

func TestNoExtensionCostsNothing(t *testing.T) {
	proxy, store := newFrontProxy(t), raftstore.NewMemory()
	start(t, store, proxy.shown).stop()
	proxy.made.Store(0)
	cfg := apiserver.Config{Store: store, Logger: discard(), TokenKey: newKey(t)}
	proxy.shown(&cfg)
	server, err := apiserver.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	p := &peer{Server: server, admin: client(t, server.ClientConfig("admin", "system:masters"))}
	go server.Run(t.Context())
	eventually(t, "server ready", func() bool { return server.Ready() == nil })
	local := &apiregistrationv1.APIService{ObjectMeta: metav1.ObjectMeta{Name: "v1.example.org"}, Spec: apiregistrationv1.APIServiceSpec{Group: "example.org", Version: "v1", GroupPriorityMinimum: 1, VersionPriority: 1}}
	if _, err := p.apiServices(t).Create(t.Context(), local, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, _, err := p.admin.Discovery().ServerGroupsAndResources(); err != nil {
		t.Fatal(err)
	}
	if _, err := get(t, p.admin, "/apis/example.org/v1"); !apierrors.IsNotFound(err) {
		t.Errorf("a local APIService of nobody's: %v, want 404", err)
	}
	if n := proxy.made.Load(); n != 0 {
		t.Errorf("a certificate was made %d times for no extension", n)
	}

	// The leader needs the CA, to write it down, and no more.
	go server.WatchExtensions(t.Context(), followed{p.Informers(), t})
	eventually(t, "the leader has looked", func() bool { return proxy.made.Load() == 1 })
	if err := p.apiServices(t).Delete(t.Context(), "v1.example.org", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is gone", func() bool { return strings.Contains(p.condition(t, "v1.example.org"), "not found") })
}
