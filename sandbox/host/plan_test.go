package host

import (
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const netns = "/run/netns/pod"

func config(opts *runtime.NamespaceOption, sysctls map[string]string) *runtime.PodSandboxConfig {
	return &runtime.PodSandboxConfig{
		Hostname: "pod",
		Linux: &runtime.LinuxPodSandboxConfig{
			Sysctls:         sysctls,
			SecurityContext: &runtime.LinuxSandboxSecurityContext{NamespaceOptions: opts},
		},
	}
}

func userns(uid, gid uint32) *runtime.UserNamespace {
	return &runtime.UserNamespace{
		Mode: runtime.NamespaceMode_POD,
		Uids: []*runtime.IDMapping{{HostId: uid, Length: 65536}},
		Gids: []*runtime.IDMapping{{HostId: gid, Length: 65536}},
	}
}

func TestPlan(t *testing.T) {
	const node, pod, container = runtime.NamespaceMode_NODE, runtime.NamespaceMode_POD, runtime.NamespaceMode_CONTAINER
	for _, test := range []struct {
		name  string
		opts  *runtime.NamespaceOption
		netns string
		want  Namespaces
	}{
		{"kubelet's", &runtime.NamespaceOption{Pid: container}, netns,
			Namespaces{Net: netns, IPC: true, UTS: true, PID: PIDContainer, Hostname: "pod"}},
		{"nothing said", nil, netns,
			Namespaces{Net: netns, IPC: true, UTS: true, PID: PIDPod, Hostname: "pod"}},
		{"host's network", &runtime.NamespaceOption{Network: node, Pid: container}, "",
			Namespaces{IPC: true, PID: PIDContainer}},
		{"all the host's", &runtime.NamespaceOption{Network: node, Pid: node, Ipc: node}, "",
			Namespaces{PID: PIDHost}},
		{"user namespace", &runtime.NamespaceOption{Pid: pod, UsernsOptions: userns(1000, 2000)}, netns,
			Namespaces{Net: netns, IPC: true, UTS: true, PID: PIDPod, Hostname: "pod"}},
		{"the host's user namespace", &runtime.NamespaceOption{Pid: container, UsernsOptions: &runtime.UserNamespace{Mode: node}}, netns,
			Namespaces{Net: netns, IPC: true, UTS: true, PID: PIDContainer, Hostname: "pod"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := Plan(config(test.opts, nil), test.netns, Defaults{})
			if err != nil {
				t.Fatal(err)
			}
			if mapped := test.opts.GetUsernsOptions().GetMode() == pod && test.opts.GetUsernsOptions() != nil; mapped != (got.User != nil) {
				t.Fatalf("user namespace: %+v", got.User)
			}
			if got.User != nil {
				if uid, gid := got.User.Root(); uid != 1000 || gid != 2000 {
					t.Errorf("root is %d:%d", uid, gid)
				}
			}
			got.User, got.Sysctls = nil, Sysctls{}
			if got.Net != test.want.Net || got.IPC != test.want.IPC || got.UTS != test.want.UTS || got.PID != test.want.PID || got.Hostname != test.want.Hostname {
				t.Errorf("got %+v, want %+v", got, test.want)
			}
		})
	}
}

func TestPlanRefuses(t *testing.T) {
	for _, test := range []struct {
		name  string
		opts  *runtime.NamespaceOption
		netns string
		want  string
	}{
		{"no network namespace", nil, "", "no network namespace"},
		{"another's processes", &runtime.NamespaceOption{Pid: runtime.NamespaceMode_TARGET}, netns, "TARGET"},
		{"no mapping", &runtime.NamespaceOption{UsernsOptions: &runtime.UserNamespace{}}, netns, "uid mapping"},
		{"mapping of nothing", &runtime.NamespaceOption{UsernsOptions: &runtime.UserNamespace{
			Uids: []*runtime.IDMapping{{}}, Gids: []*runtime.IDMapping{{}}}}, netns, "length 0"},
		{"mapping of the host's", &runtime.NamespaceOption{UsernsOptions: &runtime.UserNamespace{
			Mode: runtime.NamespaceMode_NODE, Uids: []*runtime.IDMapping{{Length: 1}}}}, netns, "no id mappings"},
		{"two mappings", &runtime.NamespaceOption{UsernsOptions: &runtime.UserNamespace{
			Uids: []*runtime.IDMapping{{Length: 1}, {Length: 1}}}}, netns, "not 2"},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := Plan(config(test.opts, nil), test.netns, Defaults{})
			if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
}

func TestSysctls(t *testing.T) {
	private := Namespaces{Net: netns, IPC: true, UTS: true}
	both := Defaults{UnprivilegedPorts: true, UnprivilegedICMP: true}
	const ports, ping = "net.ipv4.ip_unprivileged_port_start=0", "net.ipv4.ping_group_range=0 2147483647"
	for _, test := range []struct {
		name string
		n    Namespaces
		d    Defaults
		set  string
		want []string
	}{
		{"defaults", private, both, "", []string{ports, ping}},
		{"defaults are overruled", private, both, "net.ipv4.ip_unprivileged_port_start=80", []string{"net.ipv4.ip_unprivileged_port_start=80", ping}},
		{"no ping in a user namespace", Namespaces{Net: netns, User: &IDMap{}}, both, "", []string{ports}},
		{"none on the host's network", Namespaces{IPC: true}, both, "", nil},
		{"ipc", private, Defaults{}, "kernel.shm_rmid_forced=1", []string{"kernel.shm_rmid_forced=1"}},
		{"mqueue", private, Defaults{}, "fs/mqueue/msg_max=9", []string{"fs.mqueue.msg_max=9"}},
		{"domain name", private, Defaults{}, "kernel.domainname=d", []string{"kernel.domainname=d"}},
		{"dot in a part", private, Defaults{}, "net/ipv4/conf/eno2.100/rp_filter=1", []string{"net.ipv4.conf.eno2/100.rp_filter=1"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			s, err := test.n.sysctls(pairs(test.set), test.d)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for k, v := range s.All() {
				got = append(got, k+"="+v)
			}
			slices.Sort(got)
			slices.Sort(test.want)
			if !slices.Equal(got, test.want) {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}

func TestSysctlsRefused(t *testing.T) {
	private := Namespaces{Net: netns, IPC: true, UTS: true}
	for _, test := range []struct {
		name string
		n    Namespaces
		set  string
	}{
		{"the host's ipc", Namespaces{Net: netns}, "kernel.msgmax"},
		{"the host's network", Namespaces{IPC: true}, "net.core.somaxconn"},
		{"the host's name", private, "kernel.hostname"},
		{"no namespace", private, "vm.swappiness"},
		{"domain name of the host", Namespaces{IPC: true}, "kernel.domainname"},
		{"way out with slashes", private, "net/../kernel/core_pattern"},
		{"way out with dots", private, "net.//.kernel.core_pattern"},
		{"empty part", private, "net..core"},
		{"nothing", private, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			s, err := test.n.sysctls(map[string]string{test.set: "1"}, Defaults{})
			if !errdefs.IsInvalidArgument(err) {
				t.Errorf("%s: got %+v, %v", test.set, s, err)
			}
		})
	}
}

func pairs(s string) map[string]string {
	if s == "" {
		return nil
	}
	k, v, _ := strings.Cut(s, "=")
	return map[string]string{k: v}
}

func TestSysctlsAreSortedByNamespace(t *testing.T) {
	n := Namespaces{Net: netns, IPC: true, UTS: true}
	s, err := n.sysctls(map[string]string{"net.core.somaxconn": "1", "kernel.sem": "2", "kernel.domainname": "3"}, Defaults{})
	if err != nil {
		t.Fatal(err)
	}
	for name, got := range map[string]map[string]string{"net.core.somaxconn": s.Net, "kernel.sem": s.IPC, "kernel.domainname": s.UTS} {
		if keys := slices.Collect(maps.Keys(got)); !slices.Equal(keys, []string{name}) {
			t.Errorf("%s is not alone in its namespace: %q", name, keys)
		}
	}
}

// Whatever a pod calls its sysctls, only those of its namespaces are written.
func FuzzSysctls(f *testing.F) {
	for _, name := range []string{"net.core.somaxconn", "kernel.sem", "fs.mqueue.msg_max", "net/ipv4/conf/eno2.100/rp_filter", "net.//.//.kernel.core_pattern", "net/../kernel/core_pattern"} {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		s, err := Namespaces{Net: netns, IPC: true, UTS: true}.sysctls(map[string]string{name: "1"}, Defaults{})
		if err != nil {
			return
		}
		for key := range s.All() {
			path := filepath.Join("/proc/sys", swap(key))
			switch {
			case strings.HasPrefix(path, "/proc/sys/net/"), strings.HasPrefix(path, "/proc/sys/fs/mqueue/"):
			case filepath.Dir(path) == "/proc/sys/kernel" && (ipcSysctls[key] || key == "kernel.domainname"):
			default:
				t.Errorf("%q writes %s", name, path)
			}
		}
	})
}
