package metrics

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/metrics/pkg/apis/metrics/v1beta1"
)

// ConvertToTable implements rest.TableConvertor with metrics-server's columns.
func (*nodes) ConvertToTable(_ context.Context, obj, _ runtime.Object) (*metav1.Table, error) {
	list, ok := obj.(*v1beta1.NodeMetricsList)
	if !ok {
		list = &v1beta1.NodeMetricsList{Items: []v1beta1.NodeMetrics{*obj.(*v1beta1.NodeMetrics)}}
	}
	t := table()
	for i := range list.Items {
		m := &list.Items[i]
		t.Rows = append(t.Rows, row(m, m.Name, m.Usage, m.Window))
	}
	return t, nil
}

// ConvertToTable implements rest.TableConvertor with metrics-server's columns: a pod's
// containers are summed up.
func (*pods) ConvertToTable(_ context.Context, obj, _ runtime.Object) (*metav1.Table, error) {
	list, ok := obj.(*v1beta1.PodMetricsList)
	if !ok {
		list = &v1beta1.PodMetricsList{Items: []v1beta1.PodMetrics{*obj.(*v1beta1.PodMetrics)}}
	}
	t := table()
	for i := range list.Items {
		m := &list.Items[i]
		var cpu, memory resource.Quantity
		for _, c := range m.Containers {
			cpu.Add(*c.Usage.Cpu())
			memory.Add(*c.Usage.Memory())
		}
		t.Rows = append(t.Rows, row(m, m.Name, corev1.ResourceList{corev1.ResourceCPU: cpu, corev1.ResourceMemory: memory}, m.Window))
	}
	return t, nil
}

func table() *metav1.Table {
	return &metav1.Table{ColumnDefinitions: []metav1.TableColumnDefinition{
		{Name: "Name", Type: "string", Format: "name", Description: "Name of the resource"},
		{Name: "cpu", Type: "string", Format: "quantity"},
		{Name: "memory", Type: "string", Format: "quantity"},
		{Name: "Window", Type: "string", Format: "duration"},
	}}
}

func row(obj runtime.Object, name string, used corev1.ResourceList, window metav1.Duration) metav1.TableRow {
	return metav1.TableRow{
		Cells:  []any{name, used.Cpu().String(), used.Memory().String(), window.Duration.String()},
		Object: runtime.RawExtension{Object: obj},
	}
}
