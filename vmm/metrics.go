package vmm

import (
	"fmt"

	"github.com/docker/go-metrics"
)

// What the daemon serves of pools at its metrics address. Handlers whose machines
// are the same share a pool: it is known by the machine.
var (
	poolReady, poolTaken, poolMissed, poolGivenBack = poolMetrics()
)

func poolMetrics() (ready metrics.LabeledGauge, taken, missed, givenBack metrics.LabeledCounter) {
	ns := metrics.NewNamespace("kuasar", "vmm", nil)
	labels := []string{"vcpus", "memory"}
	ready = ns.NewLabeledGauge("pool_ready", "machines that wait for a pod", "", labels...)
	taken = ns.NewLabeledCounter("pool_taken", "pods that got a machine that waited", labels...)
	missed = ns.NewLabeledCounter("pool_missed", "pods for which no machine waited", labels...)
	givenBack = ns.NewLabeledCounter("pool_given_back", "machines that were ended since memory was short", labels...)
	metrics.Register(ns)
	return ready, taken, missed, givenBack
}

// labelsOf are a machine's: its processors, and its memory in MiB.
func labelsOf(c Config) []string { return []string{fmt.Sprint(c.CPUs), fmt.Sprint(c.Memory >> 20)} }
