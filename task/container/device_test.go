package container

import (
	"slices"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

func TestDevicesOfMachine(t *testing.T) {
	given := []specs.LinuxDevice{{Path: "/dev/given", Type: "c", Major: 1, Minor: 5}}
	for name, test := range map[string]struct {
		allow      bool
		null, same bool
	}{
		"privileged": {true, true, false},
		"usual":      {false, false, true},
	} {
		l := &specs.Linux{Devices: given, Resources: &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: test.allow, Access: "rwm"}}}}
		if err := addDevices(l); err != nil {
			t.Fatal(err)
		}
		has := func(path string) bool {
			return slices.ContainsFunc(l.Devices, func(d specs.LinuxDevice) bool { return d.Path == path })
		}
		if has("/dev/null") != test.null || has("/dev/given") != test.same {
			t.Errorf("%s: %v", name, l.Devices)
		}
	}
	if err := addDevices(nil); err != nil {
		t.Error(err)
	}
}

func TestProcessOfMachine(t *testing.T) {
	given := specs.Process{Cwd: "/", SelinuxLabel: "system_u:system_r:container_t:s0", ApparmorProfile: "cri-containerd.apparmor.d"}
	if got := unlabeled(&given); got.SelinuxLabel != "" || got.ApparmorProfile != "" || got.Cwd != given.Cwd {
		t.Errorf("%+v", got)
	}
	if given.ApparmorProfile == "" {
		t.Error("the caller's is changed, too")
	}
}
