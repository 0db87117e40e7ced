// Package spec translates a Kubernetes pod into what package runtime runs: sandbox
// and container specs, names, labels, environment, resources and security.
//
// Everything here is pure: it reads no clock, no disk and no API; ConfigMaps and
// Secrets come through Sources. Writing volumes is left to node/volumes, deciding
// when something is started to node/plan. Package node calls it.
package spec
