package runc

import (
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"google.golang.org/protobuf/proto"
)

func TestParse(t *testing.T) {
	yes, no := true, false
	defaults := Options{EnableUnprivilegedPorts: true}
	for _, test := range []struct {
		toml string
		want Options
	}{
		{"", defaults},
		{"SystemdCgroup = true", Options{SystemdCgroup: &yes, EnableUnprivilegedPorts: true}},
		{"systemd_cgroup = false", Options{SystemdCgroup: &no, EnableUnprivilegedPorts: true}},
		{"enable_unprivileged_ports = false\nEnableUnprivilegedICMP = true", Options{EnableUnprivilegedICMP: true}},
		{"NoPivotRoot = true\nNoNewKeyring = true\nIoUid = 7\nIoGid = 8",
			Options{NoPivotRoot: true, NoNewKeyring: true, IoUid: 7, IoGid: 8, EnableUnprivilegedPorts: true}},
	} {
		got, err := Parse([]byte(test.toml), defaults)
		if err != nil {
			t.Errorf("%q: %v", test.toml, err)
			continue
		}
		if a, b := got.SystemdCgroup, test.want.SystemdCgroup; (a == nil) != (b == nil) || a != nil && *a != *b {
			t.Errorf("%q: SystemdCgroup %v", test.toml, a)
		}
		got.SystemdCgroup, test.want.SystemdCgroup = nil, nil
		if got != test.want {
			t.Errorf("%q: got %+v", test.toml, got)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	for toml, want := range map[string][]string{
		"BinaryName = \"crun\"":     {"BinaryName", "SystemdCgroup", "enable_unprivileged_ports"},
		"SystemdCgroup = \"yes\"":   {"SystemdCgroup", "yes", "true or false"},
		"IoUid = -1":                {"IoUid", "-1"},
		"IoGid = 4294967296":        {"IoGid", "4294967295"},
		"SystemdCgroup = true oops": {"options"},
	} {
		_, err := Parse([]byte(toml), Options{})
		if !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %v", toml, err)
			continue
		}
		for _, part := range want {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("%q: %q does not say %q", toml, err, part)
			}
		}
	}
}

func TestEveryKeyIsItsOwnName(t *testing.T) {
	for key, k := range keys {
		if strings.ToLower(strings.ReplaceAll(k.name, "_", "")) != key {
			t.Errorf("%s is called %s", key, k.name)
		}
	}
	if names := allowed(); !slices.IsSorted(names) || len(names) != len(keys) {
		t.Errorf("allowed: %q", names)
	}
}

func TestSystemd(t *testing.T) {
	yes, no := true, false
	const slice = "/kubepods.slice/kubepods-pod1.slice"
	for _, test := range []struct {
		option  *bool
		parent  string
		running bool
		want    bool
		class   func(error) bool
	}{
		{nil, slice, true, true, nil},
		{nil, slice, false, false, nil},
		{nil, "/kubepods/pod1", true, false, nil},
		{nil, "", true, false, nil},
		{&no, slice, true, false, nil},
		{&yes, slice, true, true, nil},
		{&yes, "", true, true, nil},
		{&yes, "/kubepods/pod1", true, false, errdefs.IsInvalidArgument},
		{&yes, slice, false, false, errdefs.IsFailedPrecondition},
	} {
		got, err := Options{SystemdCgroup: test.option}.systemd(test.parent, test.running)
		if got != test.want || (err != nil) != (test.class != nil) || err != nil && !test.class(err) {
			t.Errorf("%+v: got %t, %v", test, got, err)
		}
	}
}

func TestTaskOptions(t *testing.T) {
	handler := Options{NoPivotRoot: true, IoUid: 5}
	client, err := typeurl.MarshalAnyToProto(&options.Options{NoNewKeyring: true, IoUid: 9, SystemdCgroup: true})
	if err != nil {
		t.Fatal(err)
	}
	got, err := handler.task(client, false)
	if err != nil {
		t.Fatal(err)
	}
	o := &options.Options{}
	if err := proto.Unmarshal(got.Value, o); err != nil {
		t.Fatal(err)
	}
	// Who makes the cgroups is not for a client to say.
	if want := (&options.Options{NoPivotRoot: true, NoNewKeyring: true, IoUid: 9}); !proto.Equal(o, want) {
		t.Errorf("got %v, want %v", o, want)
	}
	if got.TypeUrl != "containerd.runc.v1.Options" {
		t.Errorf("type %s", got.TypeUrl)
	}
	if got, err = handler.task(nil, true); err != nil {
		t.Fatal(err)
	}
	o.Reset()
	if err := proto.Unmarshal(got.Value, o); err != nil || !o.SystemdCgroup {
		t.Errorf("got %v, %v", o, err)
	}
}
