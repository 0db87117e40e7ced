package ingress

import (
	networkingv1 "k8s.io/api/networking/v1"
)

// classAnnotation is what names an Ingress's class where spec.ingressClassName does not.
const classAnnotation = "kubernetes.io/ingress.class"

// ours tells whether an Ingress is this controller's: it names a class of it, or none and
// the default class is one of it.
func ours(ing *networkingv1.Ingress, classes []*networkingv1.IngressClass) bool {
	name := ing.Annotations[classAnnotation]
	if ing.Spec.IngressClassName != nil {
		name = *ing.Spec.IngressClassName
	}
	for _, c := range classes {
		if c.Spec.Controller != ControllerName {
			continue
		}
		if name == c.Name || name == "" && c.Annotations[networkingv1.AnnotationIsDefaultIngressClass] == "true" {
			return true
		}
	}
	return false
}
