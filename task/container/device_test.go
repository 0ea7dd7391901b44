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
