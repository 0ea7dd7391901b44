package bed

import (
	"net"
	"os"
	"testing"
)

func TestMain(m *testing.M) { Main(m) }

func TestIsolated(t *testing.T) {
	Require(t)
	if _, err := os.Stat("/proc/2"); err == nil && os.Getpid() > 100 {
		t.Errorf("pid %d: not in a pid namespace of its own", os.Getpid())
	}
	links, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	if len(links) != 1 || links[0].Flags&net.FlagUp == 0 {
		t.Errorf("interfaces %v, want loopback alone, up", links)
	}
	groups, err := groups()
	if err != nil {
		t.Fatal(err)
	}
	if len(groups) != 0 {
		t.Errorf("cgroups %v, want none", groups)
	}
}
