package vmm

import (
	"slices"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

func TestRenumbered(t *testing.T) {
	n := func(i int64) *int64 { return &i }
	rules := []specs.LinuxDeviceCgroup{
		{Access: "rwm"},
		{Allow: true, Type: "c", Major: n(1), Minor: n(3), Access: "rwm"},
		{Allow: true, Type: "b", Major: n(7), Minor: n(2), Access: "r"},
		{Allow: true, Type: "b", Major: n(8), Minor: n(0), Access: "rw"}, // no device of the container's
		{Allow: true, Type: "b", Access: "m"},
	}
	got := renumbered(rules, map[[2]int64][2]int64{{7, 2}: {254, 16}})
	want := []specs.LinuxDeviceCgroup{rules[0], rules[1], {Allow: true, Type: "b", Major: n(254), Minor: n(16), Access: "r"}, rules[4]}
	same := func(a, b specs.LinuxDeviceCgroup) bool {
		number := func(p *int64) int64 {
			if p == nil {
				return -1
			}
			return *p
		}
		return a.Allow == b.Allow && a.Type == b.Type && a.Access == b.Access && number(a.Major) == number(b.Major) && number(a.Minor) == number(b.Minor)
	}
	if !slices.EqualFunc(got, want, same) {
		t.Errorf("got %+v", got)
	}
	if *rules[2].Major != 7 {
		t.Error("the caller's rules were changed")
	}
}

func TestWritable(t *testing.T) {
	major, minor := int64(7), int64(2)
	d := specs.LinuxDevice{Type: "b", Major: major, Minor: minor}
	rule := func(allow bool, access string) specs.LinuxDeviceCgroup {
		return specs.LinuxDeviceCgroup{Allow: allow, Type: "b", Major: &major, Minor: &minor, Access: access}
	}
	for name, test := range map[string]struct {
		rules []specs.LinuxDeviceCgroup
		want  bool
	}{
		"none":          {nil, true},
		"read":          {[]specs.LinuxDeviceCgroup{rule(true, "r")}, false},
		"all":           {[]specs.LinuxDeviceCgroup{rule(true, "rwm")}, true},
		"the last":      {[]specs.LinuxDeviceCgroup{rule(true, "r"), rule(true, "rw")}, true},
		"denied at end": {[]specs.LinuxDeviceCgroup{rule(true, "rw"), rule(false, "w")}, false},
	} {
		if got := writable(&specs.LinuxResources{Devices: test.rules}, d); got != test.want {
			t.Errorf("%s: %t", name, got)
		}
	}
	if !writable(nil, d) {
		t.Error("without rules it is not")
	}
}
