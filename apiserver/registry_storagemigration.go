package apiserver

import (
	_ "k8s.io/kubernetes/pkg/apis/storagemigration/install"
	migration "k8s.io/kubernetes/pkg/registry/storagemigration/storagemigration/storage"
)

// storageMigration builds the group in which users ask for objects to be written
// again in the version that is stored now; a controller of the leader does it.
func (b *builder) storageMigration() group {
	migrations := resources{}
	withStatus(b, migrations, "storageversionmigrations", migration.NewREST)
	return group{"storagemigration.k8s.io", v1(migrations)}
}
