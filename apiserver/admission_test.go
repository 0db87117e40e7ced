package apiserver_test

import (
	"context"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	nodev1 "k8s.io/api/node/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/rundigitalplatform/rookery/raftstore"
)

// What each of kube-apiserver's default plugins does that has no test of its own.
// A check is repeated until it holds, because plugins learn by informers.
func TestAdmissionPlugins(t *testing.T) {
	api := start(t, raftstore.NewMemory()).admin
	ctx := t.Context()
	yes := map[string]string{"storageclass.kubernetes.io/is-default-class": "true", "ingressclass.kubernetes.io/is-default-class": "true"}
	expandable := true
	for _, err := range []error{
		made(api.StorageV1().StorageClasses().Create(ctx, &storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: "disk", Annotations: yes}, Provisioner: "x", AllowVolumeExpansion: &expandable}, metav1.CreateOptions{})),
		made(api.StorageV1().StorageClasses().Create(ctx, &storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: "fixed"}, Provisioner: "x"}, metav1.CreateOptions{})),
		made(api.NetworkingV1().IngressClasses().Create(ctx, &networkingv1.IngressClass{ObjectMeta: metav1.ObjectMeta{Name: "door", Annotations: yes}, Spec: networkingv1.IngressClassSpec{Controller: "x.example.com/y"}}, metav1.CreateOptions{})),
		made(api.SchedulingV1().PriorityClasses().Create(ctx, &schedulingv1.PriorityClass{ObjectMeta: metav1.ObjectMeta{Name: "high"}, Value: 77}, metav1.CreateOptions{})),
		made(api.NodeV1().RuntimeClasses().Create(ctx, &nodev1.RuntimeClass{ObjectMeta: metav1.ObjectMeta{Name: "vm"}, Handler: "vm",
			Overhead:   &nodev1.Overhead{PodFixed: corev1.ResourceList{"memory": resource.MustParse("7Mi")}},
			Scheduling: &nodev1.Scheduling{NodeSelector: map[string]string{"vm": "yes"}}}, metav1.CreateOptions{})),
		made(api.CoreV1().LimitRanges("default").Create(ctx, &corev1.LimitRange{ObjectMeta: metav1.ObjectMeta{Name: "l"}, Spec: corev1.LimitRangeSpec{Limits: []corev1.LimitRangeItem{{
			Type: corev1.LimitTypeContainer, DefaultRequest: corev1.ResourceList{"memory": resource.MustParse("5Mi")}, Max: corev1.ResourceList{"memory": resource.MustParse("1Gi")}}}}}, metav1.CreateOptions{})),
		made(api.CoreV1().Nodes().Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1", Labels: map[string]string{corev1.LabelTopologyZone: "attic"}},
			Status: corev1.NodeStatus{Allocatable: corev1.ResourceList{"cpu": resource.MustParse("1"), "memory": resource.MustParse("1Gi")}}}, metav1.CreateOptions{})),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	pod := func(change func(*corev1.Pod)) (*corev1.Pod, error) {
		p := podOf("plugin", "hello:1")
		change(p)
		return api.CoreV1().Pods("default").Create(ctx, p, metav1.CreateOptions{})
	}
	for name, holds := range map[string]func() bool{
		"LimitRanger sets requests": func() bool {
			p, err := pod(func(*corev1.Pod) {})
			return err == nil && p.Spec.Containers[0].Resources.Requests.Memory().String() == "5Mi"
		},
		"LimitRanger refuses more than the most": func() bool {
			_, err := pod(func(p *corev1.Pod) {
				p.Spec.Containers[0].Resources.Limits = corev1.ResourceList{"memory": resource.MustParse("2Gi")}
			})
			return apierrors.IsForbidden(err)
		},
		"ServiceAccount refuses an account that is not there": func() bool {
			_, err := pod(func(p *corev1.Pod) { p.Spec.ServiceAccountName = "nobody" })
			return apierrors.IsForbidden(err)
		},
		"TaintNodesByCondition": func() bool {
			n, err := api.CoreV1().Nodes().Get(ctx, "n1", metav1.GetOptions{})
			return err == nil && len(n.Spec.Taints) == 1 && n.Spec.Taints[0].Key == corev1.TaintNodeNotReady
		},
		"Priority": func() bool {
			p, err := pod(func(p *corev1.Pod) { p.Spec.PriorityClassName = "high" })
			return err == nil && *p.Spec.Priority == 77
		},
		"Priority refuses a class that is not there": func() bool {
			_, err := pod(func(p *corev1.Pod) { p.Spec.PriorityClassName = "low" })
			return apierrors.IsForbidden(err)
		},
		"DefaultStorageClass": func() bool {
			c, err := claim(ctx, api, nil)
			return err == nil && c.Spec.StorageClassName != nil && *c.Spec.StorageClassName == "disk"
		},
		"PersistentVolumeClaimResize allows where the class does": func() bool {
			class := "disk"
			return grow(ctx, api, &class) == nil
		},
		"PersistentVolumeClaimResize refuses where it does not": func() bool {
			class := "fixed"
			err := grow(ctx, api, &class)
			return apierrors.IsForbidden(err) && strings.Contains(err.Error(), "must support resize")
		},
		"RuntimeClass adds overhead and placement": func() bool {
			class := "vm"
			p, err := pod(func(p *corev1.Pod) { p.Spec.RuntimeClassName = &class })
			return err == nil && p.Spec.Overhead.Memory().String() == "7Mi" && p.Spec.NodeSelector["vm"] == "yes"
		},
		"RuntimeClass refuses a class that is not there": func() bool {
			class := "none"
			_, err := pod(func(p *corev1.Pod) { p.Spec.RuntimeClassName = &class })
			return apierrors.IsForbidden(err)
		},
		"RuntimeClass refuses overhead without a class": func() bool {
			_, err := pod(func(p *corev1.Pod) { p.Spec.Overhead = corev1.ResourceList{"memory": resource.MustParse("1Mi")} })
			return apierrors.IsForbidden(err)
		},
		"DefaultIngressClass": func() bool {
			i := &networkingv1.Ingress{ObjectMeta: metav1.ObjectMeta{GenerateName: "i-"}, Spec: networkingv1.IngressSpec{
				DefaultBackend: &networkingv1.IngressBackend{Service: &networkingv1.IngressServiceBackend{Name: "s", Port: networkingv1.ServiceBackendPort{Number: 80}}}}}
			i, err := api.NetworkingV1().Ingresses("default").Create(ctx, i, metav1.CreateOptions{})
			return err == nil && i.Spec.IngressClassName != nil && *i.Spec.IngressClassName == "door"
		},
		"PodTopologyLabels": func() bool {
			p, err := pod(func(p *corev1.Pod) { p.Spec.NodeName = "n1" })
			return err == nil && p.Labels[corev1.LabelTopologyZone] == "attic"
		},
		"PodResizeValidator refuses more than the node has": func() bool {
			p, err := pod(func(p *corev1.Pod) { p.Spec.NodeName = "n1" })
			if err != nil {
				return false
			}
			p.Spec.Containers[0].Resources.Requests = corev1.ResourceList{"cpu": resource.MustParse("2"), "memory": resource.MustParse("5Mi")}
			_, err = api.CoreV1().Pods("default").UpdateResize(ctx, p.Name, p, metav1.UpdateOptions{})
			return apierrors.IsForbidden(err) && strings.Contains(err.Error(), "enough allocatable")
		},
	} {
		t.Run(name, func(t *testing.T) { eventually(t, name, holds) })
	}
}

func made(_ any, err error) error { return err }

func claim(ctx context.Context, api kubernetes.Interface, class *string) (*corev1.PersistentVolumeClaim, error) {
	return api.CoreV1().PersistentVolumeClaims("default").Create(ctx, &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{GenerateName: "c-"}, Spec: corev1.PersistentVolumeClaimSpec{
		StorageClassName: class, AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
		Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{"storage": resource.MustParse("1Gi")}},
	}}, metav1.CreateOptions{})
}

// grow asks for more for a claim that is bound.
func grow(ctx context.Context, api kubernetes.Interface, class *string) error {
	claims := api.CoreV1().PersistentVolumeClaims("default")
	c, err := claim(ctx, api, class)
	if err != nil {
		return err
	}
	c.Status.Phase = corev1.ClaimBound
	if c, err = claims.UpdateStatus(ctx, c, metav1.UpdateOptions{}); err != nil {
		return err
	}
	c.Spec.Resources.Requests["storage"] = resource.MustParse("2Gi")
	_, err = claims.Update(ctx, c, metav1.UpdateOptions{})
	return err
}
