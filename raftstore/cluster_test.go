package raftstore_test

import (
	"testing"

	"github.com/rundigitalplatform/rookery/raftstore"
	"github.com/rundigitalplatform/rookery/raftstore/rafttest"
	"github.com/rundigitalplatform/rookery/raftstore/storetest"
)

func TestReplicatedAlone(t *testing.T) {
	storetest.Run(t, func(t *testing.T) raftstore.Store {
		return rafttest.NewCluster(t, rafttest.Calm, "a").Leader()
	})
}

func TestReplicatedFollower(t *testing.T) {
	storetest.Run(t, func(t *testing.T) raftstore.Store {
		return rafttest.NewCluster(t, rafttest.Calm, "a", "b", "c").Followers()[0]
	})
}
