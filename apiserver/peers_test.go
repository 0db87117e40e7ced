package apiserver_test

import (
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/rundigitalplatform/rookery/raftstore"
)

// TestWhatAPeerMay: a peer reads what its own pods refer to, and writes about itself
// and them. Another peer's things are not its business.
func TestWhatAPeerMay(t *testing.T) {
	p := start(t, raftstore.NewMemory())
	ctx, admin := t.Context(), p.admin.CoreV1()
	agent := client(t, p.ClientConfig("system:node:n1", "system:nodes")).CoreV1()

	must := func(_ any, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"mine", "theirs"} {
		must(admin.Secrets("default").Create(ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{}))
		must(admin.ServiceAccounts("default").Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{}))
	}
	must(admin.Nodes().Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n2"}}, metav1.CreateOptions{}))
	bound := func(name, node string) *corev1.Pod {
		pod := aPod(name)
		pod.Spec.NodeName, pod.Spec.ServiceAccountName = node, name
		pod.Spec.Volumes = []corev1.Volume{{Name: "s", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: name}}}}
		created, err := admin.Pods("default").Create(ctx, pod, metav1.CreateOptions{})
		must(created, err)
		return created
	}
	mine, theirs := bound("mine", "n1"), bound("theirs", "n2")

	token := func(pod *corev1.Pod) error {
		_, err := agent.ServiceAccounts("default").CreateToken(ctx, pod.Name, &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{
			BoundObjectRef: &authenticationv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: pod.Name, UID: pod.UID},
		}}, metav1.CreateOptions{})
		return err
	}
	getSecret := func(name string) error {
		_, err := agent.Secrets("default").Get(ctx, name, metav1.GetOptions{})
		return err
	}
	status := func(pod *corev1.Pod) error {
		pod.Status.Phase = corev1.PodRunning
		_, err := agent.Pods("default").UpdateStatus(ctx, pod, metav1.UpdateOptions{})
		return err
	}
	node := func(name string, labels map[string]string) error {
		_, err := agent.Nodes().Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}}, metav1.CreateOptions{})
		return err
	}
	eventually(t, "the pod's secret may be read", func() bool { return getSecret("mine") == nil })
	for name, err := range map[string]error{
		"a token of its pod":    token(mine),
		"the status of its pod": status(mine),
		"its own Node":          node("n1", map[string]string{corev1.LabelHostname: "n1", "site": "attic"}),
	} {
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	_, list := agent.Secrets("default").List(ctx, metav1.ListOptions{})
	_, configMap := agent.ConfigMaps("default").Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "x"}}, metav1.CreateOptions{})
	for name, err := range map[string]error{
		"another peer's secret":                  getSecret("theirs"),
		"all secrets":                            list,
		"a token of another peer's pod":          token(theirs),
		"the status of another peer's pod":       status(theirs),
		"another peer's pod":                     agent.Pods("default").Delete(ctx, theirs.Name, metav1.DeleteOptions{}),
		"another peer's Node":                    agent.Nodes().Delete(ctx, "n2", metav1.DeleteOptions{}),
		"a Node of another name":                 node("n3", nil),
		"a label that placement is to rely upon": node("n1", map[string]string{"node-restriction.kubernetes.io/safe": "yes"}),
		"a config map":                           configMap,
	} {
		if !apierrors.IsForbidden(err) {
			t.Errorf("%s: %v, want 403", name, err)
		}
	}
}

// TestPodSecurity: a namespace's labels say which pods it takes.
func TestPodSecurity(t *testing.T) {
	p := start(t, raftstore.NewMemory())
	ctx := t.Context()
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "safe", Labels: map[string]string{
		"pod-security.kubernetes.io/enforce": "baseline", "pod-security.kubernetes.io/warn": "restricted",
	}}}
	if _, err := p.admin.CoreV1().Namespaces().Create(ctx, namespace, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := p.admin.CoreV1().ServiceAccounts("safe").Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "default"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	heard := &warnings{}
	cfg := p.ClientConfig("admin", "system:masters")
	cfg.WarningHandler = heard
	pods := client(t, cfg).CoreV1().Pods("safe")

	privileged := aPod("privileged")
	yes := true
	privileged.Spec.Containers[0].SecurityContext = &corev1.SecurityContext{Privileged: &yes}
	if _, err := pods.Create(ctx, privileged, metav1.CreateOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("privileged pod: %v, want 403", err)
	}
	if _, err := pods.Create(ctx, aPod("plain"), metav1.CreateOptions{}); err != nil {
		t.Errorf("plain pod: %v", err)
	}
	if len(heard.texts) == 0 {
		t.Error("no warning that a plain pod is not restricted")
	}
}
