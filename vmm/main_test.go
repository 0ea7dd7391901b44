package vmm_test

import (
	"os"
	"testing"

	"github.com/containerd-kuasar/containerd-kuasar/internal/failpoint"
	"github.com/containerd-kuasar/containerd-kuasar/vmm"
	"github.com/containerd-kuasar/containerd-kuasar/vmm/vmmtest"
)

// TestMain is also a guest, and daemons that die.
func TestMain(m *testing.M) {
	vmmtest.Main()
	if len(os.Args) == 3 && os.Args[1] == doomedDaemon {
		os.Exit(doom(os.Args[2]))
	}
	if len(os.Args) == 3 && os.Args[1] == doomedTemplate {
		os.Exit(doomTemplate(os.Args[2]))
	}
	if len(os.Args) == 3 && os.Args[1] == doomedPool {
		os.Exit(doomPool(os.Args[2]))
	}
	if os.Getenv(failpoint.Env) != "" && len(os.Args) == 2 {
		os.Exit(vmm.Doomed(os.Args[1]))
	}
	os.Exit(m.Run())
}
