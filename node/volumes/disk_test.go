package volumes

import (
	"os"
	"path/filepath"
	"testing"

	v1 "k8s.io/api/core/v1"
)

// What a pod has on disk: each emptyDir by itself, all else together, and nothing of what
// is in memory.
func TestDisk(t *testing.T) {
	m := New(t.TempDir(), nil)
	pod := &v1.Pod{}
	pod.UID = "u1"
	for name, medium := range map[string]v1.StorageMedium{"data": "", "empty": "", "memory": v1.StorageMediumMemory} {
		pod.Spec.Volumes = append(pod.Spec.Volumes, v1.Volume{Name: name, VolumeSource: v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{Medium: medium}}})
	}
	write := func(name string, size int) {
		t.Helper()
		path := filepath.Join(m.PodDir(pod.UID), name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		file, err := os.Create(path)
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		data := make([]byte, size)
		for i := range data {
			data[i] = byte(i)
		}
		if _, err := file.Write(data); err != nil {
			t.Fatal(err)
		}
		if err := file.Sync(); err != nil { // so that its blocks are there
			t.Fatal(err)
		}
	}
	if d, err := m.Disk(t.Context(), pod); err != nil || d.All().Bytes != 0 {
		t.Errorf("before it has a directory: %+v %v", d, err)
	}
	write("volumes/data/deep/file", 1<<20)
	write("volumes/config/key", 64<<10)
	write("state.json", 64<<10)
	d, err := m.Disk(t.Context(), pod)
	if err != nil {
		t.Fatal(err)
	}
	near := func(what string, have, want int64) {
		t.Helper()
		if have < want || have > want+64<<10 {
			t.Errorf("%s takes %d bytes, want %d", what, have, want)
		}
	}
	near("data", d.EmptyDirs["data"].Bytes, 1<<20)
	near("all else", d.Other.Bytes, 128<<10)
	near("all", d.All().Bytes, 1<<20+128<<10)
	if _, ok := d.EmptyDirs["memory"]; ok || len(d.EmptyDirs) != 2 || d.EmptyDirs["data"].Inodes != 3 {
		t.Errorf("%+v", d.EmptyDirs)
	}
}
