package e2e

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	certificatesv1 "k8s.io/api/certificates/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

const configurationPods = `
{apiVersion: v1, kind: ConfigMap, metadata: {name: conf, namespace: hello}, data: {key: one, other: two, "a.b-c": dotted}}
---
{apiVersion: v1, kind: Secret, metadata: {name: conf, namespace: hello}, stringData: {pass: word}}
---
{apiVersion: v1, kind: Service, metadata: {name: conf-svc, namespace: hello}, spec: {clusterIP: 10.43.77.77, selector: {app: none}, ports: [{name: web, port: 81}, {name: dns, port: 53, protocol: UDP}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: conf, namespace: hello, labels: {tier: a.b}, annotations: {note: "x\ny"}}, spec: {nodeName: h2, terminationGracePeriodSeconds: 0,
  securityContext: {fsGroup: 4000, fsGroupChangePolicy: OnRootMismatch},
  volumes: [
    {name: items, configMap: {name: conf, defaultMode: 0440, items: [{key: key, path: deep/down/key}, {key: other, path: other, mode: 0500}]}},
    {name: all, configMap: {name: conf}},
    {name: secret, secret: {secretName: conf, defaultMode: 0400}},
    {name: absent, configMap: {name: nosuch, optional: true}},
    {name: absent-key, secret: {secretName: conf, optional: true, items: [{key: nosuch, path: x}, {key: pass, path: got}]}},
    {name: info, downwardAPI: {defaultMode: 0444, items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}, {path: note, fieldRef: {fieldPath: "metadata.annotations['note']"}}, {path: limit, resourceFieldRef: {containerName: c, resource: limits.memory, divisor: 1Mi}}, {path: cpu, mode: 0400, resourceFieldRef: {containerName: c, resource: requests.cpu, divisor: 1m}}]}},
    {name: both, projected: {defaultMode: 0640, sources: [{configMap: {name: conf, items: [{key: key, path: c/key}]}}, {secret: {name: conf}}, {downwardAPI: {items: [{path: name, fieldRef: {fieldPath: metadata.name}}]}}, {serviceAccountToken: {path: token, expirationSeconds: 600, audience: somebody}}]}},
    {name: trust, projected: {sources: [{clusterTrustBundle: {name: conf-named, path: named.pem}}, {clusterTrustBundle: {signerName: rookery.test/conf, labelSelector: {matchLabels: {part: conf}}, path: signed.pem}}, {clusterTrustBundle: {name: nosuch, optional: true, path: none.pem}}]}},
    {name: disk, emptyDir: {}}, {name: mem, emptyDir: {medium: Memory, sizeLimit: 2Mi}},
    {name: dir, hostPath: {path: DIR/made/dir, type: DirectoryOrCreate}}, {name: file, hostPath: {path: DIR/made-file, type: FileOrCreate}},
    {name: is-dir, hostPath: {path: DIR, type: Directory}}, {name: is-file, hostPath: {path: DIR/file, type: File}}, {name: is-sock, hostPath: {path: SOCKET, type: Socket}}, {name: is-char, hostPath: {path: /dev/zero, type: CharDevice}}, {name: is-block, hostPath: {path: DIR/block, type: BlockDevice}}, {name: any, hostPath: {path: DIR/any}},
    {name: prop, hostPath: {path: DIR/prop}}],
  containers: [
    {name: c, image: localhost/busybox:1, command: [sh, -c, "echo '$(A) $$(A) $(NOSUCH)' \"$0\" > /disk/args; sleep 1000", "$(EXPANDED)"],
      resources: {requests: {cpu: 250m, memory: 16Mi}, limits: {memory: 64Mi, cpu: 1500m}},
      envFrom: [{prefix: P_, configMapRef: {name: conf}}, {secretRef: {name: conf}}, {configMapRef: {name: nosuch, optional: true}}],
      env: [{name: A, value: first}, {name: EXPANDED, value: "$(A)-$$(A)-$(LATER)-$(pass)-$(CONF_SVC_SERVICE_HOST)"}, {name: LATER, value: later}, {name: pass, value: "$(pass)s"},
        {name: KEY, valueFrom: {configMapKeyRef: {name: conf, key: key}}}, {name: SECRET, valueFrom: {secretKeyRef: {name: conf, key: pass}}},
        {name: NONE, valueFrom: {configMapKeyRef: {name: conf, key: nosuch, optional: true}}}, {name: NONE2, valueFrom: {secretKeyRef: {name: nosuch, key: x, optional: true}}},
        {name: NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}, {name: NS, valueFrom: {fieldRef: {fieldPath: metadata.namespace}}}, {name: TIER, valueFrom: {fieldRef: {fieldPath: "metadata.labels['tier']"}}},
        {name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}, {name: SA, valueFrom: {fieldRef: {fieldPath: spec.serviceAccountName}}}, {name: HOST_IP, valueFrom: {fieldRef: {fieldPath: status.hostIP}}}, {name: POD_IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}, {name: POD_IPS, valueFrom: {fieldRef: {fieldPath: status.podIPs}}}, {name: POD_UID, valueFrom: {fieldRef: {fieldPath: metadata.uid}}},
        {name: CPU, valueFrom: {resourceFieldRef: {resource: limits.cpu}}}, {name: MILLI, valueFrom: {resourceFieldRef: {resource: requests.cpu, divisor: 1m}}}, {name: MIB, valueFrom: {resourceFieldRef: {resource: limits.memory, divisor: 1Mi}}}, {name: OF_D, valueFrom: {resourceFieldRef: {containerName: d, resource: requests.memory}}}],
      volumeMounts: [{name: items, mountPath: /items}, {name: all, mountPath: /all}, {name: secret, mountPath: /secret}, {name: absent, mountPath: /absent}, {name: absent-key, mountPath: /absent-key}, {name: info, mountPath: /info}, {name: both, mountPath: /both}, {name: trust, mountPath: /trust}, {name: disk, mountPath: /disk}, {name: mem, mountPath: /mem},
        {name: dir, mountPath: /h/dir}, {name: file, mountPath: /h/file}, {name: is-dir, mountPath: /h/is-dir}, {name: is-file, mountPath: /h/is-file}, {name: is-sock, mountPath: /h/is-sock}, {name: is-char, mountPath: /h/is-char}, {name: is-block, mountPath: /h/is-block}, {name: any, mountPath: /h/any}, {name: disk, mountPath: /sub, subPathExpr: "logs/$(NAME)"}]},
    {name: d, image: localhost/busybox:1, command: [sleep, "1000"], resources: {requests: {memory: 8Mi}}, securityContext: {privileged: true}, volumeMounts: [{name: prop, mountPath: /prop, mountPropagation: Bidirectional}]},
    {name: e, image: localhost/busybox:1, command: [sleep, "1000"], volumeMounts: [{name: prop, mountPath: /prop, mountPropagation: HostToContainer}]},
    {name: f, image: localhost/busybox:1, command: [sleep, "1000"], volumeMounts: [{name: prop, mountPath: /prop}]}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: no-links, namespace: hello}, spec: {nodeName: h2, terminationGracePeriodSeconds: 0, enableServiceLinks: false, containers: [{name: c, image: localhost/busybox:1, command: [sleep, "1000"]}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: no-conf, namespace: hello}, spec: {nodeName: h2, terminationGracePeriodSeconds: 0, containers: [
  {name: map, image: localhost/busybox:1, envFrom: [{configMapRef: {name: nosuch}}]}, {name: key, image: localhost/busybox:1, env: [{name: A, valueFrom: {secretKeyRef: {name: conf, key: nosuch}}}]}, {name: sub, image: localhost/busybox:1, volumeMounts: [{name: d, mountPath: /d, subPathExpr: "$(NOSUCH)"}]}], volumes: [{name: d, emptyDir: {}}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: no-vol, namespace: hello}, spec: {nodeName: h2, terminationGracePeriodSeconds: 0, containers: [{name: c, image: localhost/busybox:1, volumeMounts: [{name: a, mountPath: /a}]}], volumes: [
  {name: a, configMap: {name: conf, items: [{key: nosuch, path: x}]}}, {name: b, secret: {secretName: nosuch}},
  {name: dir, hostPath: {path: DIR/file, type: Directory}}, {name: dir2, hostPath: {path: DIR/file, type: DirectoryOrCreate}}, {name: file, hostPath: {path: DIR, type: File}}, {name: file2, hostPath: {path: DIR, type: FileOrCreate}}, {name: sock, hostPath: {path: DIR/file, type: Socket}}, {name: char, hostPath: {path: DIR, type: CharDevice}}, {name: block, hostPath: {path: /dev/zero, type: BlockDevice}}, {name: none, hostPath: {path: DIR/nosuch, type: File}}]}}
`

// What a pod is told by its environment and its files, and what it is told if that cannot be had.
func TestPodConfiguration(t *testing.T) {
	dir := scratch(t)
	for _, sub := range []string{"prop", "prop/host", "prop/pod"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	touch(t, dir+"/file")
	// No driver has to be behind it: nobody opens it.
	if err := unix.Mknod(dir+"/block", unix.S_IFBLK|0o600, int(unix.Mkdev(7, 250))); err != nil {
		t.Fatal(err)
	}
	named, signed := certificate(t, "named"), certificate(t, "signed")
	trust(t, certificatesv1.ClusterTrustBundle{ObjectMeta: metav1.ObjectMeta{Name: "conf-named"}, Spec: certificatesv1.ClusterTrustBundleSpec{TrustBundle: named}})
	trust(t, certificatesv1.ClusterTrustBundle{ObjectMeta: metav1.ObjectMeta{Name: "rookery.test:conf:ours", Labels: map[string]string{"part": "conf"}},
		Spec: certificatesv1.ClusterTrustBundleSpec{SignerName: "rookery.test/conf", TrustBundle: signed}})
	trust(t, certificatesv1.ClusterTrustBundle{ObjectMeta: metav1.ObjectMeta{Name: "rookery.test:conf:theirs"}, // without the label
		Spec: certificatesv1.ClusterTrustBundleSpec{SignerName: "rookery.test/conf", TrustBundle: certificate(t, "theirs")}})
	must(t, "h2", "sh", "-c", "mount -t tmpfs tmpfs "+dir+"/prop && mount --make-shared "+dir+"/prop && mkdir "+dir+"/prop/host "+dir+"/prop/pod")
	defer must(t, "h2", "sh", "-c", "for d in prop/host prop/pod prop; do ! mountpoint -q "+dir+"/$d || umount -l "+dir+"/$d; done")
	sock := shared.HostDir("h2") + "/podman.sock"
	file := manifest(t, strings.NewReplacer("DIR", dir, "SOCKET", sock).Replace(configurationPods))
	sh(t, "h1", "rookery apply -f "+file)
	defer sh(t, "h1", "rookery delete --ignore-not-found --grace-period=1 -f "+file)
	untilPod(t, "conf", is("Running c:ready d:ready e:ready f:ready"))
	pod := podNow(t, "conf")
	in := func(t *testing.T, container, script string) string {
		t.Helper()
		return must(t, "h3", "rookery", "-n", "hello", "exec", "conf", "-c", container, "--", "sh", "-c", script)
	}

	for name, tt := range map[string]struct{ script, want string }{
		"expansion":           {"echo $EXPANDED; cat /disk/args", "first-$(A)-$(LATER)-word-10.43.77.77\nfirst $(A) $(NOSUCH) first-$(A)-$(LATER)-word-10.43.77.77\n"},
		"a later one wins":    {"echo $pass", "words\n"},
		"keys":                {"echo $KEY $SECRET $P_key $P_other", "one word one two\n"},
		"optional":            {"echo ${NONE-unset} ${NONE2-unset}; ls /absent; cat /absent-key/got; ls /absent-key", "unset unset\nwordgot\n"},
		"services":            {"echo $CONF_SVC_SERVICE_HOST $CONF_SVC_SERVICE_PORT $CONF_SVC_SERVICE_PORT_DNS $CONF_SVC_PORT_53_UDP $KUBERNETES_SERVICE_HOST", "10.43.77.77 81 53 udp://10.43.77.77:53 10.43.0.1\n"},
		"fields":              {"echo $NAME $NS $TIER $NODE $SA $HOST_IP $POD_IP $POD_IPS $POD_UID", "conf hello a.b h2 default 10.77.0.2 " + pod.Status.PodIP + " " + pod.Status.PodIP + " " + string(pod.UID) + "\n"},
		"resources":           {"echo $CPU $MILLI $MIB $OF_D", "2 250 64 8388608\n"},
		"downward files":      {"cat /info/labels; echo; cat /info/note; echo; cat /info/limit; echo; cat /info/cpu", "tier=\"a.b\"\nx\ny\n64\n250"},
		"items":               {"cd /items && find -L . -type f | grep -v /\\\\.\\\\. | sort; cat deep/down/key", "./deep/down/key\n./other\none"},
		"modes":               {"stat -Lc %a:%g /items/other /items/deep/down/key /all/key /secret/pass /info/cpu /both/name /both/c/key", "540:4000\n440:4000\n644:4000\n440:4000\n440:4000\n640:4000\n640:4000\n"},
		"projected":           {"cat /both/c/key /both/pass /both/name; cut -d. -f1 /both/token | head -c 4", "onewordconfeyJh"},
		"group of the volume": {"stat -c %a:%g /disk /mem; touch /disk/x; stat -c %g /disk/x; id -G | tr ' ' '\\n' | grep -x 4000", "2777:4000\n2777:4000\n4000\n4000\n"},
		"memory":              {"dd if=/dev/zero of=/mem/f bs=1M count=3 2>/dev/null || echo full; grep ' /mem ' /proc/mounts | cut -d' ' -f1", "full\ntmpfs\n"},
		"subPathExpr":         {"touch /sub/x; ls /disk/logs/conf", "x\n"},
		"hostPath":            {"cd /h && for f in *; do stat -c '%n %F' $f; done", "any directory\ndir directory\nfile regular empty file\nis-block block special file\nis-char character special file\nis-dir directory\nis-file regular empty file\nis-sock socket\n"},
		"trust bundles":       {"cd /trust && cat named.pem signed.pem none.pem", named + signed},
		"projected read-only": {"touch /items/x 2>/dev/null || echo refused", "refused\n"},
	} {
		t.Run(name, func(t *testing.T) {
			if out := in(t, "c", tt.script); out != tt.want {
				t.Errorf("printed %q, want %q", out, tt.want)
			}
		})
	}
	t.Run("any name", func(t *testing.T) { // a shell would leave it out
		contains(t, "h3", []string{"P_a.b-c=dotted\n"}, strings.Fields("rookery -n hello exec conf -c c -- env")...)
	})
	t.Run("trust bundles follow", func(t *testing.T) {
		named, signed := certificate(t, "named again"), certificate(t, "signed again")
		for name, bundle := range map[string]string{"conf-named": named, "rookery.test:conf:ours": signed} {
			patch := fmt.Appendf(nil, `{"spec":{"trustBundle":%q}}`, bundle)
			if _, err := api(t).CertificatesV1().ClusterTrustBundles().Patch(t.Context(), name, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
				t.Fatal(err)
			}
		}
		eventually(t, patience, func() error {
			out, err := shared.Run(t.Context(), "h3", strings.Fields("rookery -n hello exec conf -c c -- cat /trust/named.pem /trust/signed.pem")...)
			if err == nil && out != named+signed {
				err = fmt.Errorf("the files are %q, the bundles %q", out, named+signed)
			}
			return err
		})
	})
	t.Run("propagation", func(t *testing.T) {
		must(t, "h2", "sh", "-c", "mount -t tmpfs tmpfs "+dir+"/prop/host && touch "+dir+"/prop/host/x")
		in(t, "d", "mount -t tmpfs tmpfs /prop/pod && touch /prop/pod/y")
		for container, want := range map[string]string{"d": "x\ny\n", "e": "x\ny\n", "f": ""} {
			if out := in(t, container, "ls /prop/host /prop/pod | grep -v -e : -e '^$' || true"); out != want {
				t.Errorf("%s sees %q, want %q", container, out, want)
			}
		}
		if out := must(t, "h2", "ls", dir+"/prop/pod"); out != "y\n" {
			t.Errorf("the machine sees %q", out)
		}
	})
	t.Run("no service links", func(t *testing.T) {
		untilPod(t, "no-links", is("Running c:ready"))
		if out := sh(t, "h3", "rookery -n hello exec no-links -- env"); strings.Contains(out, "CONF_SVC") || !strings.Contains(out, "KUBERNETES_SERVICE_HOST=10.43.0.1\n") {
			t.Errorf("its environment is %q", out)
		}
	})
	t.Run("what is missing", func(t *testing.T) {
		untilPod(t, "no-conf", is("Pending ContainersReady=ContainersNotReady Ready=ContainersNotReady map:CreateContainerConfigError key:CreateContainerConfigError sub:CreateContainerConfigError"))
		pod := podNow(t, "no-conf")
		for name, want := range map[string]string{"map": `configmap "nosuch" not found`, "key": "couldn't find key nosuch in Secret hello/conf", "sub": `failed to prepare subPath for volumeMount "d" of container "sub"`} {
			if m := containerOf(pod, name).State.Waiting.Message; !strings.Contains(m, want) {
				t.Errorf("%s: %q, want %q", name, m, want)
			}
		}
		events(t, "no-vol", "FailedMount", `volume "a": configmap "conf" references non-existent key: nosuch`, `volume "b": secret "nosuch" not found`,
			`volume "dir": hostPath type check failed: `+dir+`/file is not a directory`, `volume "dir2": hostPath type check failed: `+dir+`/file is not a directory`,
			`volume "file": hostPath type check failed: `+dir+` is not a file`, `volume "file2": hostPath type check failed: `+dir+` is not a file`,
			`volume "sock": hostPath type check failed: `+dir+`/file is not a socket file`, `volume "char": hostPath type check failed: `+dir+` is not a character device`,
			`volume "block": hostPath type check failed: /dev/zero is not a block device`, `volume "none": hostPath type check failed`, dir+`/nosuch" does not exist`)
	})
}

// trust makes a bundle that is there until the test ends.
func trust(t *testing.T, bundle certificatesv1.ClusterTrustBundle) {
	t.Helper()
	client := api(t).CertificatesV1().ClusterTrustBundles()
	if _, err := client.Create(t.Context(), &bundle, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := client.Delete(context.Background(), bundle.Name, metav1.DeleteOptions{}); err != nil {
			t.Error(err)
		}
	})
}

// certificate is one that somebody of that name signed for itself, as PEM.
func certificate(t *testing.T, name string) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	of := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, of, of, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}
