package apiserver_test

import (
	"bytes"
	"net/http"
	goruntime "runtime"
	"runtime/pprof"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/rundigitalplatform/rookery/raftstore"
	"github.com/rundigitalplatform/rookery/raftstore/rafttest"
)

// working are the goroutines that serve definitions: informers, queues, controllers.
func working(t *testing.T) int {
	t.Helper()
	var all bytes.Buffer
	if err := pprof.Lookup("goroutine").WriteTo(&all, 2); err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, stack := range strings.Split(all.String(), "\n\n") {
		// awaitFirst is the watch on the store; it alone is there without definitions.
		if strings.Contains(stack, "apiextensions") || strings.Contains(stack, "customresources.") && !strings.Contains(stack, "awaitFirst") && !strings.Contains(stack, "RunControllers") {
			n++
		}
	}
	return n
}

// Without definitions nothing of them runs, however often somebody asks.
func TestNoDefinitionsNoCost(t *testing.T) {
	eventually(t, "other tests have ended", func() bool { return working(t) == 0 })
	c := startLeader(t)
	for _, path := range []string{"/apis/example.com", "/apis/example.com/v1", widgetsPath, "/apis/example.com/v1/namespaces/default/widgets/a/status"} {
		if a := c.do(t, "GET", path, ""); a.code != http.StatusNotFound {
			t.Errorf("%s: %d", path, a.code)
		}
	}
	for _, path := range []string{"/apis", "/openapi/v2", "/openapi/v3", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"} {
		if a := c.do(t, "GET", path, ""); a.code != http.StatusOK {
			t.Errorf("%s: %d", path, a.code)
		}
	}
	if n := working(t); n != 0 {
		t.Errorf("%d goroutines serve definitions that are not there", n)
	}
	allocated := func() uint64 {
		var m goruntime.MemStats
		goruntime.ReadMemStats(&m)
		return m.TotalAlloc
	}
	before := allocated()
	const asked = 200
	for range asked {
		c.do(t, "GET", widgetsPath, "")
	}
	if each := (allocated() - before) / asked; each > 64<<10 {
		t.Errorf("a request for an unknown kind allocates %d bytes", each)
	}
	held := func() float64 {
		goruntime.GC()
		goruntime.GC() // what finalizers held
		var m goruntime.MemStats
		goruntime.ReadMemStats(&m)
		return float64(m.HeapAlloc+m.StackInuse) / (1 << 20)
	}
	without, began := held(), time.Now()
	c.define(t, widgets)
	established := time.Since(began)
	if _, err := c.widgets("v1").Create(t.Context(), aWidget(t, "first", "{size: big}"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	object := time.Since(began)
	with := held()
	t.Logf("established after %v, the first object after %v; %.1f MB before, %.1f after", established, object, without, with)
	if with-without > 25 {
		t.Errorf("the first definition and object hold %.1f MB", with-without)
	}
	if working(t) == 0 {
		t.Error("nothing works for a definition that is there: the test does not see it")
	}
}

// What was established by one peer is served by all at once, also by those that nobody
// has asked yet, and after a restart.
func TestDefinitionsOnEveryPeer(t *testing.T) {
	store := raftstore.NewMemory()
	leader, follower := startCustom(t, store), startCustom(t, store)
	end := leader.lead(t)
	began := time.Now()
	leader.define(t, widgets)
	if _, err := follower.widgets("v1").Create(t.Context(), aWidget(t, "there", "{size: big}"), metav1.CreateOptions{}); err != nil {
		t.Fatalf("create on another peer right after established: %v", err)
	}
	soon(t, "from a definition to an object on another peer", began)
	for i := range 20 {
		names := aDefinition("many"+strings.Repeat("y", i)+"s", "peers.example.com", "Many"+strings.Repeat("y", i))
		crd := leader.define(t, names)
		if a := follower.do(t, "GET", "/apis/peers.example.com/v1/"+crd.Spec.Names.Plural, ""); a.code != http.StatusOK {
			t.Fatalf("%s on another peer right after established: %d", crd.Name, a.code)
		}
		if a := follower.do(t, "GET", "/apis/peers.example.com/v1", ""); !strings.Contains(string(a.body), `"`+crd.Spec.Names.Plural+`"`) {
			t.Fatalf("%s is not discovered on another peer", crd.Name)
		}
	}
	end()
	leader.stop()
	follower.stop()
	again := startCustom(t, store)
	eventually(t, "a peer that starts wakes by itself", func() bool { return working(t) > 0 })
	got, err := again.widgets("v1").Get(t.Context(), "there", metav1.GetOptions{})
	if err != nil || field(t, got, "spec", "replicas") != int64(1) {
		t.Errorf("after a restart: %v, %v", got, err)
	}
	if _, err := again.widgets("v1").Create(t.Context(), aWidget(t, "later", "{size: big}"), metav1.CreateOptions{}); err != nil {
		t.Errorf("create after a restart: %v", err)
	}
	again.stop()
	eventually(t, "nothing is left of a peer that has stopped", func() bool { return working(t) == 0 })
}

// The same over Raft, where a follower applies later than the one who was acknowledged.
func TestDefinitionsOverRaft(t *testing.T) {
	raft := rafttest.NewCluster(t, func(*raftstore.Config) {}, "a", "b", "c")
	peers := map[string]*custom{}
	for name, store := range raft.Peers() {
		peers[name] = startCustom(t, store)
	}
	leader, behind := raft.Leader().Name, raft.Followers()[0].Name
	peers[leader].lead(t)

	// A peer that was cut off meanwhile catches up before it says that there is no such kind,
	// or says that it has no quorum.
	raft.Net.SetCut(behind, true)
	peers[leader].define(t, widgets)
	raft.Net.SetCut(behind, false)
	eventually(t, "an object on the peer that was cut off", func() bool {
		a := peers[behind].do(t, "GET", widgetsPath, "")
		if a.code == http.StatusNotFound && !strings.Contains(a.header.Get("Warning"), "last known state") {
			t.Fatal("the peer that was cut off does not know the kind, and does not know that it may not know")
		}
		return a.code == http.StatusOK
	})

	for i := range 10 {
		plural := "raft" + strings.Repeat("y", i) + "s"
		peers[leader].define(t, aDefinition(plural, "example.com", "Raft"+strings.Repeat("y", i)))
		for name, p := range peers {
			objects := p.objects.Resource(schema.GroupVersionResource{Group: "example.com", Version: "v1", Resource: plural}).Namespace("default")
			u := parse(t, "{apiVersion: example.com/v1, kind: Raft"+strings.Repeat("y", i)+", metadata: {name: by-"+name+"}}")
			if _, err := objects.Create(t.Context(), u, metav1.CreateOptions{}); err != nil {
				t.Fatalf("create %s on %s right after established: %v", plural, name, err)
			}
			if a := p.do(t, "GET", "/apis/example.com/v1", ""); !strings.Contains(string(a.body), `"`+plural+`"`) {
				t.Fatalf("%s is not discovered on %s", plural, name)
			}
		}
	}
	for name, p := range peers {
		list, err := p.objects.Resource(schema.GroupVersionResource{Group: "example.com", Version: "v1", Resource: "rafts"}).List(t.Context(), metav1.ListOptions{})
		if err != nil || len(list.Items) != len(peers) {
			t.Errorf("%s lists %v, %v", name, list, err)
		}
	}
}
