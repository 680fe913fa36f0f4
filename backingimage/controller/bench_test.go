package controller_test

import (
	"testing"

	"plinth.dev/plinth/backingimage/controller"
	"plinth.dev/plinth/backingimage/controller/controllertest"
)

// BenchmarkPlan plans every image of a cluster of 1,000 nodes and 50 images once.
func BenchmarkPlan(b *testing.B) {
	cluster := controllertest.Cluster(1000, 50)
	for b.Loop() {
		for _, s := range cluster {
			controller.Plan(s)
		}
	}
}
