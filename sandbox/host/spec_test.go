package host

import (
	"reflect"
	"slices"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

func ns(all ...string) []specs.LinuxNamespace {
	var s []specs.LinuxNamespace
	for i := 0; i < len(all); i += 2 {
		s = append(s, specs.LinuxNamespace{Type: specs.LinuxNamespaceType(all[i]), Path: all[i+1]})
	}
	return s
}

func TestNamespaces(t *testing.T) {
	private := View{Net: netns, IPC: "/d/ns/ipc", UTS: "/d/ns/uts", Pids: []uint32{42, 41}}
	shared := private
	shared.PID = "/d/ns/pid"
	mapped := private
	mapped.User = "/d/ns/user"
	for _, test := range []struct {
		name   string
		view   View
		client string // cri or ctr
		have   []specs.LinuxNamespace
		want   []specs.LinuxNamespace
		shares bool
	}{
		{"as CRI writes it", private, "cri",
			ns("mount", "", "pid", "", "network", "/proc/42/ns/net", "ipc", "/proc/42/ns/ipc", "uts", "/proc/42/ns/uts"),
			ns("mount", "", "pid", "", "network", netns, "ipc", "/d/ns/ipc", "uts", "/d/ns/uts"), false},
		{"by a worker that nobody remembers", private, "cri",
			ns("network", "/proc/7/ns/net", "ipc", "/proc/7/ns/ipc"),
			ns("network", netns, "ipc", "/d/ns/ipc"), false},
		{"on the host's network", View{IPC: "/d/ns/ipc", Pids: []uint32{42}}, "cri",
			ns("network", "/proc/42/ns/net", "uts", "/proc/42/ns/uts", "ipc", "/proc/42/ns/ipc", "mount", ""),
			ns("ipc", "/d/ns/ipc", "mount", ""), false},
		{"shared processes", shared, "cri",
			ns("pid", "/proc/42/ns/pid"), ns("pid", "/d/ns/pid"), true},
		{"by an earlier worker", shared, "cri",
			ns("pid", "/proc/41/ns/pid"), ns("pid", "/d/ns/pid"), true},
		{"the host's processes", private, "cri",
			ns("pid", "/proc/42/ns/pid"), ns(), true},
		{"a certain container's processes", shared, "cri",
			ns("pid", "/proc/77/ns/pid"), ns("pid", "/proc/77/ns/pid"), false},
		{"user namespace", mapped, "cri",
			ns("user", "/proc/42/ns/user", "ipc", "/proc/42/ns/ipc"),
			ns("user", "/d/ns/user", "ipc", "/d/ns/ipc"), false},
		{"client that names nothing", private, "ctr",
			ns("pid", "", "network", "", "ipc", "", "uts", "", "mount", ""),
			ns("pid", "", "network", netns, "ipc", "/d/ns/ipc", "uts", "/d/ns/uts", "mount", ""), false},
		{"client that names another's", private, "ctr",
			ns("network", "/run/netns/other", "ipc", "/proc/7/ns/ipc", "uts", "/proc/42/ns/uts"),
			ns("network", "/run/netns/other", "ipc", "/proc/7/ns/ipc", "uts", "/d/ns/uts"), false},
		{"client with a user namespace of its own", private, "ctr",
			ns("user", ""), ns("user", ""), false},
		{"types that are no pod's", private, "cri",
			ns("cgroup", "", "time", ""), ns("cgroup", "", "time", ""), false},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := &specs.Spec{Linux: &specs.Linux{Namespaces: test.have}}
			if test.client == "cri" {
				s.Annotations = map[string]string{criSandbox: "pod"}
			}
			if got := test.view.SharesPID(s); got != test.shares {
				t.Errorf("shares the pod's processes: %t", got)
			}
			test.view.Apply(s)
			if !slices.Equal(s.Linux.Namespaces, test.want) {
				t.Errorf("got %v\nwant %v", s.Linux.Namespaces, test.want)
			}
			test.view.Apply(s)
			if !slices.Equal(s.Linux.Namespaces, test.want) {
				t.Errorf("the second time: got %v\nwant %v", s.Linux.Namespaces, test.want)
			}
		})
	}
}

func TestJoinedUserNamespaceBringsItsMappings(t *testing.T) {
	m := []specs.LinuxIDMapping{{HostID: 1000, Size: 1}}
	s := &specs.Spec{Linux: &specs.Linux{Namespaces: ns("user", "/proc/42/ns/user"), UIDMappings: m, GIDMappings: m}}
	View{User: "/d/ns/user", Pids: []uint32{42}}.Apply(s)
	if s.Linux.UIDMappings != nil || s.Linux.GIDMappings != nil {
		t.Errorf("mappings beside a path: %v", s.Linux)
	}
}

func TestMounts(t *testing.T) {
	v := View{Dir: "/d"}
	pod := func(mode string) map[string]specs.Mount {
		return map[string]specs.Mount{
			etcHosts:    {Destination: etcHosts, Type: "bind", Source: "/d/hosts", Options: []string{"rbind", "rprivate", mode}},
			etcHostname: {Destination: etcHostname, Type: "bind", Source: "/d/hostname", Options: []string{"rbind", "rprivate", mode}},
			etcResolv:   {Destination: etcResolv, Type: "bind", Source: "/d/resolv.conf", Options: []string{"rbind", "rprivate", mode}},
			devShm:      {Destination: devShm, Type: "bind", Source: "/d/shm", Options: []string{"rbind", "rprivate", "rw"}},
		}
	}
	proc := specs.Mount{Destination: "/proc", Type: "proc"}
	shm := specs.Mount{Destination: "/dev/shm/", Type: "tmpfs", Source: "shm"}
	ownShm := specs.Mount{Destination: "/dev/shm", Type: "bind", Source: "/volume"}
	ownHosts := specs.Mount{Destination: "/etc/hosts", Type: "bind", Source: "/kubelet/hosts"}
	below := specs.Mount{Destination: "/dev/shm/x", Type: "bind", Source: "/x"}
	rw, ro := pod("rw"), pod("ro")
	hostShm := rw[devShm]
	hostShm.Source = devShm
	for _, test := range []struct {
		name     string
		view     View
		readonly bool
		have     []specs.Mount
		want     []specs.Mount
	}{
		{"default", v, false, []specs.Mount{proc, shm, proc},
			[]specs.Mount{proc, rw[devShm], proc, rw[etcHostname], rw[etcHosts], rw[etcResolv]}},
		{"read-only rootfs", v, true, []specs.Mount{proc, shm},
			[]specs.Mount{proc, ro[devShm], ro[etcHostname], ro[etcHosts], ro[etcResolv]}},
		{"the container's own", v, false, []specs.Mount{ownHosts, ownShm},
			[]specs.Mount{ownHosts, ownShm, rw[etcHostname], rw[etcResolv]}},
		{"mount below", v, false, []specs.Mount{proc, below},
			[]specs.Mount{proc, rw[devShm], below, rw[etcHostname], rw[etcHosts], rw[etcResolv]}},
		{"the host's ipc", View{Dir: "/d", HostIPC: true}, false, []specs.Mount{shm},
			[]specs.Mount{hostShm, rw[etcHostname], rw[etcHosts], rw[etcResolv]}},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := &specs.Spec{Root: &specs.Root{Readonly: test.readonly}, Mounts: slices.Clone(test.have)}
			for _, time := range []string{"first", "second"} {
				test.view.Apply(s)
				if !reflect.DeepEqual(s.Mounts, test.want) {
					t.Errorf("the %s time: got %v\nwant %v", time, s.Mounts, test.want)
				}
			}
		})
	}
}

func TestCgroup(t *testing.T) {
	for _, test := range []struct {
		parent, path string
		systemd      bool
		want         string
	}{
		{parent: "/kubepods/pod1", want: "/kubepods/pod1/c"},
		{parent: "/kubepods.slice/kubepods-pod1.slice", systemd: true, want: "kubepods-pod1.slice:cri-containerd:c"},
		{parent: "/kubepods.slice/kubepods-pod1.slice", want: "/kubepods.slice/kubepods-pod1.slice/cri-containerd-c.scope"},
		{path: "/k8s.io/c", want: "/k8s.io/c"},
		{path: "/k8s.io/c", systemd: true, want: "system.slice:kuasar:c"},
		{path: "", want: "/kuasar/c"},
		{path: "", systemd: true, want: "system.slice:kuasar:c"},
	} {
		path := test.path
		if test.parent != "" {
			path = CgroupPath(test.parent, "c")
		}
		if got := Cgroup(path, "c", test.systemd); got != test.want {
			t.Errorf("%+v: got %s", test, got)
		}
	}
}

func TestExpand(t *testing.T) {
	for in, want := range map[string]string{
		"a-b-c.slice":      "/a.slice/a-b.slice/a-b-c.slice",
		"system.slice":     "/system.slice",
		"/x.slice/y.slice": "/x.slice/y.slice",
		"/kubepods":        "/kubepods",
	} {
		if got := expand(in); got != want {
			t.Errorf("%s: got %s, want %s", in, got, want)
		}
	}
}
