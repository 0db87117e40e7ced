package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strings"
)

// metrics.k8s.io is described by nothing that Kubernetes publishes. Its documents are
// made here from that of core: what lists and gets Nodes and Pods there does the same
// with NodeMetrics and PodMetrics here.
const (
	metricsPath   = "apis/metrics.k8s.io/v1beta1"
	metricsPrefix = "io.k8s.metrics.pkg.apis.metrics.v1beta1."
)

// describeMetrics returns paths and schemas of metrics.k8s.io. paths and schemas are
// those of core in either version of OpenAPI, ref is the prefix of references.
func describeMetrics(paths, schemas map[string]any, ref string) (newPaths, newSchemas map[string]any, err error) {
	newPaths = map[string]any{}
	for _, path := range []string{"/", "/nodes", "/nodes/{name}", "/pods", "/namespaces/{namespace}/pods", "/namespaces/{namespace}/pods/{name}"} {
		item, ok := paths["/api/v1"+path].(map[string]any)
		if !ok {
			return nil, nil, fmt.Errorf("describe metrics: core has no path %s", path)
		}
		kept := map[string]any{"get": item["get"]}
		if p, ok := item["parameters"]; ok {
			kept["parameters"] = p
		}
		if newPaths["/"+metricsPath+path], err = renamed(kept); err != nil {
			return nil, nil, err
		}
	}
	list, ok := schemas["io.k8s.api.core.v1.NodeList"].(map[string]any)
	if !ok {
		return nil, nil, errors.New("describe metrics: core has no NodeList")
	}
	return newPaths, metricsSchemas(list["properties"].(map[string]any), ref), nil
}

// renamed is a path's description with the names of the other kinds.
func renamed(item map[string]any) (any, error) {
	text, err := json.Marshal(item)
	if err != nil {
		return nil, err
	}
	other := strings.NewReplacer(
		"io.k8s.api.core.v1.NodeList", metricsPrefix+"NodeMetricsList", "io.k8s.api.core.v1.Node", metricsPrefix+"NodeMetrics",
		"io.k8s.api.core.v1.PodList", metricsPrefix+"PodMetricsList", "io.k8s.api.core.v1.Pod", metricsPrefix+"PodMetrics",
		`{"group":"","kind":"Node","version":"v1"}`, `{"group":"metrics.k8s.io","kind":"NodeMetrics","version":"v1beta1"}`,
		`{"group":"","kind":"Pod","version":"v1"}`, `{"group":"metrics.k8s.io","kind":"PodMetrics","version":"v1beta1"}`,
		"list or watch objects of kind Node", "list objects of kind NodeMetrics", "list or watch objects of kind Pod", "list objects of kind PodMetrics",
		"CoreV1NamespacedPod", "MetricsV1beta1NamespacedPodMetrics", "CoreV1PodForAll", "MetricsV1beta1PodMetricsForAll",
		"CoreV1Node", "MetricsV1beta1NodeMetrics", "CoreV1API", "MetricsV1beta1API", "core_v1", "metrics_v1beta1",
		"read the specified Node", "read the specified NodeMetrics", "read the specified Pod", "read the specified PodMetrics",
		"name of the Node", "name of the NodeMetrics", "name of the Pod", "name of the PodMetrics",
	).Replace(string(text))
	var out any
	err = json.Unmarshal([]byte(other), &out)
	return out, err
}

// metricsSchemas describes the types of k8s.io/metrics/pkg/apis/metrics/v1beta1. The
// fields that every object has are taken from those of another.
func metricsSchemas(common map[string]any, ref string) map[string]any {
	refer := func(name string) map[string]any { return map[string]any{"$ref": ref + name} }
	meta := "io.k8s.apimachinery.pkg.apis.meta.v1."
	usage := map[string]any{
		"description": "The memory usage is the memory working set.", "type": "object",
		"additionalProperties": refer("io.k8s.apimachinery.pkg.api.resource.Quantity"),
	}
	window := map[string]any{
		"timestamp": refer(meta + "Time"),
		"window":    map[string]any{"type": "string", "description": "Metrics were collected from the interval [timestamp-window, timestamp]."},
	}
	object := func(kind, description string, metadata string, required []any, properties map[string]any) map[string]any {
		maps.Copy(properties, map[string]any{"apiVersion": common["apiVersion"], "kind": common["kind"], "metadata": refer(meta + metadata)})
		return map[string]any{
			"description": description, "type": "object", "properties": properties, "required": required,
			"x-kubernetes-group-version-kind": []any{map[string]any{"group": "metrics.k8s.io", "kind": kind, "version": "v1beta1"}},
		}
	}
	list := func(kind string) map[string]any {
		items := map[string]any{"type": "array", "description": "List of metrics.", "items": refer(metricsPrefix + kind)}
		return object(kind+"List", kind+"List is a list of "+kind+".", "ListMeta", []any{"items"}, map[string]any{"items": items})
	}
	node, pod := map[string]any{"usage": usage}, map[string]any{"containers": map[string]any{
		"type": "array", "description": "Metrics for all containers are collected within the same time window.",
		"items": refer(metricsPrefix + "ContainerMetrics"), "x-kubernetes-list-type": "atomic",
	}}
	maps.Copy(node, window)
	maps.Copy(pod, window)
	return map[string]any{
		metricsPrefix + "NodeMetrics":     object("NodeMetrics", "NodeMetrics sets resource usage metrics of a node.", "ObjectMeta", []any{"timestamp", "window", "usage"}, node),
		metricsPrefix + "NodeMetricsList": list("NodeMetrics"),
		metricsPrefix + "PodMetrics":      object("PodMetrics", "PodMetrics sets resource usage metrics of a pod.", "ObjectMeta", []any{"timestamp", "window", "containers"}, pod),
		metricsPrefix + "PodMetricsList":  list("PodMetrics"),
		metricsPrefix + "ContainerMetrics": map[string]any{
			"description": "ContainerMetrics sets resource usage metrics of a container.", "type": "object", "required": []any{"name", "usage"},
			"properties": map[string]any{"name": map[string]any{"type": "string", "description": "Container name corresponding to the one from pod.spec.containers."}, "usage": usage},
		},
	}
}
