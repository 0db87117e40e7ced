package admission

import (
	"context"
	"fmt"
	"io"
	"reflect"
	"strings"
	"sync"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apiserver/pkg/admission"
)

// quantityRangeName refuses quantities far beyond what anything can be measured in.
// Upstream computes with them for hours: 10^999999999 is a number of 400 MB. Decoding is
// bounded by our copy of the decimal numbers (third_party/inf), and nothing else has
// looked at the object when this plugin, the first of all, refuses it.
const quantityRangeName = "QuantityRange"

const (
	maxQuantityExponent = 100  // powers of ten, either way
	maxQuantityBits     = 1024 // of the digits before it
)

type quantityRange struct{ *admission.Handler }

func registerQuantityRange(plugins *admission.Plugins) {
	plugins.Register(quantityRangeName, func(io.Reader) (admission.Interface, error) {
		return quantityRange{admission.NewHandler(admission.Create, admission.Update)}, nil
	})
}

// Admit implements admission.MutationInterface, because validation comes later. It changes nothing.
func (quantityRange) Admit(_ context.Context, a admission.Attributes, _ admission.ObjectInterfaces) error {
	if a.GetObject() == nil {
		return nil
	}
	v := reflect.ValueOf(a.GetObject())
	if !holdsQuantity(v.Type()) {
		return nil
	}
	if errs := checkQuantities(nil, v); len(errs) > 0 {
		return apierrors.NewInvalid(a.GetKind().GroupKind(), a.GetName(), errs)
	}
	return nil
}

func checkQuantities(at *field.Path, v reflect.Value) (errs field.ErrorList) {
	if !holdsQuantity(v.Type()) {
		return nil
	}
	switch v.Kind() {
	case reflect.Pointer:
		if !v.IsNil() {
			return checkQuantities(at, v.Elem())
		}
	case reflect.Slice, reflect.Array:
		for i := range v.Len() {
			errs = append(errs, checkQuantities(at.Index(i), v.Index(i))...)
		}
	case reflect.Map:
		for _, key := range v.MapKeys() {
			errs = append(errs, checkQuantities(at.Key(fmt.Sprint(key)), v.MapIndex(key))...)
		}
	case reflect.Struct:
		if v.Type() == quantityType {
			return checkQuantity(at, v.Interface().(resource.Quantity))
		}
		for i := range v.NumField() {
			f := v.Type().Field(i)
			if !f.IsExported() || !holdsQuantity(f.Type) {
				continue
			}
			below := at
			if !f.Anonymous {
				below = at.Child(strings.ToLower(f.Name[:1]) + f.Name[1:])
			}
			errs = append(errs, checkQuantities(below, v.Field(i))...)
		}
	}
	return errs
}

func checkQuantity(at *field.Path, q resource.Quantity) field.ErrorList {
	d := q.AsDec() // of a copy: it changes how q is kept
	if s := d.Scale(); s < -maxQuantityExponent || s > maxQuantityExponent || d.UnscaledBig().BitLen() > maxQuantityBits {
		return field.ErrorList{field.Invalid(at, d.String(), fmt.Sprintf("a quantity must be between 10^-%[1]d and 10^%[1]d", maxQuantityExponent))}
	}
	return nil
}

var quantityType = reflect.TypeFor[resource.Quantity]()

// quantityHolders remembers for types whether a quantity can be in them.
var quantityHolders sync.Map

func holdsQuantity(t reflect.Type) bool {
	if known, ok := quantityHolders.Load(t); ok {
		return known.(bool)
	}
	holds := findQuantity(t, map[reflect.Type]bool{})
	quantityHolders.Store(t, holds)
	return holds
}

func findQuantity(t reflect.Type, seen map[reflect.Type]bool) bool {
	if t == quantityType {
		return true
	}
	if seen[t] {
		return false
	}
	seen[t] = true
	switch t.Kind() {
	case reflect.Pointer, reflect.Slice, reflect.Array, reflect.Map:
		return findQuantity(t.Elem(), seen)
	case reflect.Struct:
		for i := range t.NumField() {
			if f := t.Field(i); f.IsExported() && findQuantity(f.Type, seen) {
				return true
			}
		}
	}
	return false
}
