package devices

import (
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

func TestAll(t *testing.T) {
	one := int64(1)
	deny, allow := specs.LinuxDeviceCgroup{Access: "rwm"}, specs.LinuxDeviceCgroup{Allow: true, Access: "rwm"}
	some := specs.LinuxDeviceCgroup{Allow: true, Type: "c", Major: &one, Access: "rwm"}
	for name, test := range map[string]struct {
		rules []specs.LinuxDeviceCgroup
		want  bool
	}{
		"none":       {nil, false},
		"privileged": {[]specs.LinuxDeviceCgroup{allow}, true},
		"usual":      {[]specs.LinuxDeviceCgroup{deny, some}, false},
		"taken back": {[]specs.LinuxDeviceCgroup{allow, deny}, false},
		"more":       {[]specs.LinuxDeviceCgroup{deny, allow, some}, true},
	} {
		if got := All(&specs.LinuxResources{Devices: test.rules}); got != test.want {
			t.Errorf("%s: %t", name, got)
		}
	}
	if All(nil) {
		t.Error("without resources")
	}
}

func TestUniversal(t *testing.T) {
	for _, test := range []struct {
		kind         string
		major, minor int64
		want         bool
	}{
		{"c", 1, 3, true},     // null
		{"c", 5, 0, true},     // tty
		{"c", 10, 229, true},  // fuse
		{"c", 10, 200, true},  // net/tun
		{"c", 10, 58, false},  // whatever was the first
		{"c", 10, 256, false}, // likewise
		{"c", 226, 128, false},
		{"b", 1, 0, false},
		{"b", 8, 0, false},
		{"p", 0, 0, true},
	} {
		if got := Universal(specs.LinuxDevice{Type: test.kind, Major: test.major, Minor: test.minor}); got != test.want {
			t.Errorf("%s %d:%d: %t", test.kind, test.major, test.minor, got)
		}
	}
}
