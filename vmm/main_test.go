package vmm_test

import (
	"os"
	"testing"

	"github.com/containerd-kuasar/containerd-kuasar/internal/failpoint"
	"github.com/containerd-kuasar/containerd-kuasar/vmm"
	"github.com/containerd-kuasar/containerd-kuasar/vmm/vmmtest"
)

// TestMain is also a guest, and the daemon that dies while it launches.
func TestMain(m *testing.M) {
	vmmtest.Main()
	if os.Getenv(failpoint.Env) != "" && len(os.Args) == 2 {
		os.Exit(vmm.Doomed(os.Args[1]))
	}
	os.Exit(m.Run())
}
