package e2e

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/containerd-kuasar/containerd-kuasar/test/bed"
)

// reporting has guests give free memory back.
const reporting = `
[plugins.'io.containerd.sandbox.controller.v1.vmm']
  free_page_reporting = true
`

// TestFreePageReportingVM fills memory of a guest and frees it: the host gets it
// back.
func TestFreePageReportingVM(t *testing.T) {
	bed.RequireVMM(t)
	b := newBed(t, bed.Options{Config: reporting})
	for _, handler := range []string{bed.VMM, bed.VMMClone} {
		t.Run(handler, func(t *testing.T) {
			n := on(t, b, handler)
			p := n.pod(nil)
			c := n.run(p, nil)
			machine := n.sandboxes()[p.ID].Pid
			n.exec(c, "busybox dd if=/dev/zero of=/dev/shm/x bs=1M count=48 2>/dev/null")
			full := n.resident(machine)
			// It is told two seconds after it is free, but for the last 16 MiB.
			n.exec(c, "rm /dev/shm/x; sleep 7")
			if empty := n.resident(machine); empty > full-24<<20 {
				t.Errorf("the machine had %d MiB, and %d MiB when 48 were free", full>>20, empty>>20)
			}
		})
	}
}

// resident is what a process has of memory that has no file system, in bytes: a
// machine's.
func (n *fixture) resident(pid uint32) int {
	n.t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	n.must(err)
	_, rest, _ := strings.Cut(string(text), "RssShmem:")
	fields := strings.Fields(rest)
	kib, err := strconv.Atoi(fields[0])
	n.must(err)
	return kib << 10
}
