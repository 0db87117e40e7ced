package volumes

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"time"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/rundigitalplatform/rookery/node/spec"
)

// projection collects the files of one volume.
type projection struct {
	m     *Manager
	pod   *v1.Pod
	name  string // of the volume
	info  spec.PodInfo
	src   spec.Sources
	mode  int32 // default
	files map[string]file
	next  time.Time
}

func (m *Manager) project(ctx context.Context, pod *v1.Pod, v *v1.Volume, info spec.PodInfo, src spec.Sources) (time.Time, error) {
	p := &projection{m: m, pod: pod, name: v.Name, info: info, src: src, mode: 0o644, files: map[string]file{}}
	if err := p.collect(ctx, v); err != nil {
		return time.Time{}, err
	}
	gid := -1
	if g := fsGroup(pod); g != nil {
		gid = int(*g)
		for k, f := range p.files {
			f.mode |= 0o440
			p.files[k] = f
		}
	}
	return p.next, writeAtomic(m.volumeDir(pod.UID, v.Name), p.files, gid)
}

func (p *projection) collect(ctx context.Context, v *v1.Volume) error {
	switch {
	case v.ConfigMap != nil:
		p.defaultMode(v.ConfigMap.DefaultMode)
		return p.configMap(v.ConfigMap.Name, v.ConfigMap.Items, v.ConfigMap.Optional)
	case v.Secret != nil:
		p.defaultMode(v.Secret.DefaultMode)
		return p.secret(v.Secret.SecretName, v.Secret.Items, v.Secret.Optional)
	case v.DownwardAPI != nil:
		p.defaultMode(v.DownwardAPI.DefaultMode)
		return p.downward(v.DownwardAPI.Items)
	}
	p.defaultMode(v.Projected.DefaultMode)
	var errs []error
	for i := range v.Projected.Sources {
		errs = append(errs, p.source(ctx, &v.Projected.Sources[i]))
	}
	return errors.Join(errs...)
}

func (p *projection) source(ctx context.Context, s *v1.VolumeProjection) error {
	switch {
	case s.ConfigMap != nil:
		return p.configMap(s.ConfigMap.Name, s.ConfigMap.Items, s.ConfigMap.Optional)
	case s.Secret != nil:
		return p.secret(s.Secret.Name, s.Secret.Items, s.Secret.Optional)
	case s.DownwardAPI != nil:
		return p.downward(s.DownwardAPI.Items)
	case s.ServiceAccountToken != nil:
		return p.token(ctx, s.ServiceAccountToken)
	case s.ClusterTrustBundle != nil:
		return p.trustBundle(s.ClusterTrustBundle)
	}
	return fmt.Errorf("this projected source is not supported; use configMap, secret, downwardAPI, serviceAccountToken or clusterTrustBundle")
}

func (p *projection) defaultMode(mode *int32) {
	if mode != nil {
		p.mode = *mode
	}
}

func (p *projection) add(path string, data []byte, mode *int32) {
	m := p.mode
	if mode != nil {
		m = *mode
	}
	p.files[path] = file{data: data, mode: os.FileMode(m) & os.ModePerm, uid: -1}
}

func (p *projection) configMap(name string, items []v1.KeyToPath, optional *bool) error {
	cm, err := p.src.ConfigMap(p.pod.Namespace, name)
	if err != nil {
		return missing(err, optional, "configmap", name)
	}
	data := make(map[string][]byte, len(cm.Data)+len(cm.BinaryData))
	for k, v := range cm.Data {
		data[k] = []byte(v)
	}
	maps.Copy(data, cm.BinaryData)
	return p.keys("configmap", name, data, items, optional)
}

func (p *projection) secret(name string, items []v1.KeyToPath, optional *bool) error {
	s, err := p.src.Secret(p.pod.Namespace, name)
	if err != nil {
		return missing(err, optional, "secret", name)
	}
	return p.keys("secret", name, s.Data, items, optional)
}

func (p *projection) keys(kind, name string, data map[string][]byte, items []v1.KeyToPath, optional *bool) error {
	if len(items) == 0 {
		for k, v := range data {
			p.add(k, v, nil)
		}
		return nil
	}
	for _, item := range items {
		v, ok := data[item.Key]
		if !ok {
			if optional != nil && *optional {
				continue
			}
			return fmt.Errorf("%s %q references non-existent key: %s", kind, name, item.Key)
		}
		p.add(item.Path, v, item.Mode)
	}
	return nil
}

func (p *projection) downward(items []v1.DownwardAPIVolumeFile) error {
	var errs []error
	for _, item := range items {
		var value string
		var err error
		switch {
		case item.FieldRef != nil:
			value, err = spec.Field(p.pod, item.FieldRef.FieldPath, p.info)
		case item.ResourceFieldRef != nil:
			value, err = spec.ResourceField(p.pod, nil, item.ResourceFieldRef, p.info)
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		p.add(item.Path, []byte(value), item.Mode)
	}
	return errors.Join(errs...)
}

func missing(err error, optional *bool, kind, name string) error {
	if apierrors.IsNotFound(err) {
		if optional != nil && *optional {
			return nil
		}
		return fmt.Errorf("%s %q not found", kind, name)
	}
	return fmt.Errorf("get %s %q: %w", kind, name, err)
}
