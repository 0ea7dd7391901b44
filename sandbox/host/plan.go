package host

import (
	"fmt"
	"maps"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Namespaces is what a pod asks for, read from its config.
type Namespaces struct {
	Net      string // path of the pod's network namespace; empty for the host's
	IPC      bool   // one of its own, not the host's
	UTS      bool   // likewise
	PID      PID
	User     *IDMap // of its own; nil for the host's
	Hostname string // to set in UTS; empty leaves the host's
	Sysctls  Sysctls
}

// PID is who shares a process id namespace.
type PID int

// The pod's mode is what its containers have if they ask for nothing else.
const (
	PIDContainer PID = iota // each container has one of its own
	PIDPod                  // all containers of the pod share one
	PIDHost
)

// IDMap is the mapping of a pod's user namespace, one line each as
// containerd's snapshots support it.
type IDMap struct {
	UID, GID specs.LinuxIDMapping
}

// Root is the user and group on the host that are root in the namespace.
func (m *IDMap) Root() (uid, gid int) {
	if m == nil {
		return 0, 0
	}
	return rootOf(m.UID), rootOf(m.GID)
}

func rootOf(m specs.LinuxIDMapping) int {
	if m.ContainerID != 0 {
		return 0
	}
	return int(m.HostID)
}

// Sysctls are sorted by the namespace that they belong to.
type Sysctls struct {
	Net, IPC, UTS map[string]string
}

// All of them in one map.
func (s Sysctls) All() map[string]string {
	all := map[string]string{}
	maps.Copy(all, s.Net)
	maps.Copy(all, s.IPC)
	maps.Copy(all, s.UTS)
	return all
}

// Defaults are sysctls that a pod with a network of its own gets unless it
// sets them itself, as containerd's CRI gives them.
type Defaults struct {
	// UnprivilegedPorts lets any user bind to ports below 1024.
	UnprivilegedPorts bool
	// UnprivilegedICMP lets any user ping. Not in a user namespace, where the
	// range of groups is not valid.
	UnprivilegedICMP bool
}

// Plan reads a pod's config. netns is the path of the network namespace that
// was made for it, empty for a pod on the host's network. What the pod may not
// have is errdefs.ErrInvalidArgument.
func Plan(config *runtime.PodSandboxConfig, netns string, d Defaults) (Namespaces, error) {
	opts := config.GetLinux().GetSecurityContext().GetNamespaceOptions()
	if opts.GetNetwork() == runtime.NamespaceMode_NODE {
		netns = ""
	} else if netns == "" {
		return Namespaces{}, invalid("the pod has a network of its own, but no network namespace was made for it")
	}
	n := Namespaces{
		Net: netns,
		IPC: opts.GetIpc() != runtime.NamespaceMode_NODE,
		UTS: netns != "",
	}
	if n.UTS {
		n.Hostname = config.GetHostname()
	}
	switch mode := opts.GetPid(); mode {
	case runtime.NamespaceMode_CONTAINER:
		n.PID = PIDContainer
	case runtime.NamespaceMode_POD:
		n.PID = PIDPod
	case runtime.NamespaceMode_NODE:
		n.PID = PIDHost
	default:
		return Namespaces{}, invalid("pid namespace mode %s is not one of a pod", mode)
	}
	var err error
	if n.User, err = idMap(opts.GetUsernsOptions()); err != nil {
		return Namespaces{}, err
	}
	n.Sysctls, err = n.sysctls(config.GetLinux().GetSysctls(), d)
	return n, err
}

func idMap(u *runtime.UserNamespace) (*IDMap, error) {
	if u == nil {
		return nil, nil // a client that does not know user namespaces
	}
	switch mode := u.GetMode(); mode {
	case runtime.NamespaceMode_NODE:
		if len(u.GetUids())+len(u.GetGids()) > 0 {
			return nil, invalid("the host's user namespace takes no id mappings")
		}
		return nil, nil
	case runtime.NamespaceMode_POD:
	default:
		return nil, invalid("user namespace mode %s is not one of a pod", mode)
	}
	uid, err := mapping("uid", u.GetUids())
	if err != nil {
		return nil, err
	}
	gid, err := mapping("gid", u.GetGids())
	if err != nil {
		return nil, err
	}
	return &IDMap{UID: uid, GID: gid}, nil
}

func mapping(what string, m []*runtime.IDMapping) (specs.LinuxIDMapping, error) {
	if len(m) != 1 || m[0] == nil {
		return specs.LinuxIDMapping{}, invalid("a user namespace needs one %s mapping, not %d", what, len(m))
	}
	if m[0].GetLength() < 1 {
		return specs.LinuxIDMapping{}, invalid("%s mapping has length %d", what, m[0].GetLength())
	}
	return specs.LinuxIDMapping{ContainerID: m[0].GetContainerId(), HostID: m[0].GetHostId(), Size: m[0].GetLength()}, nil
}

// ipcSysctls belong to an ipc namespace, beside fs.mqueue.*.
var ipcSysctls = map[string]bool{
	"kernel.msgmax": true, "kernel.msgmnb": true, "kernel.msgmni": true, "kernel.sem": true,
	"kernel.shmall": true, "kernel.shmmax": true, "kernel.shmmni": true, "kernel.shm_rmid_forced": true,
}

// sysctls accepts exactly what runc would for the same pod.
func (n Namespaces) sysctls(want map[string]string, d Defaults) (Sysctls, error) {
	s := Sysctls{Net: map[string]string{}, IPC: map[string]string{}, UTS: map[string]string{}}
	if n.Net != "" {
		if d.UnprivilegedPorts {
			s.Net["net.ipv4.ip_unprivileged_port_start"] = "0"
		}
		if d.UnprivilegedICMP && n.User == nil {
			s.Net["net.ipv4.ping_group_range"] = "0 2147483647"
		}
	}
	for name, value := range want {
		key := dots(name)
		switch {
		case !proper(key):
			return Sysctls{}, invalid("sysctl %q is not a name", name)
		case ipcSysctls[key] || strings.HasPrefix(key, "fs.mqueue."):
			if !n.IPC {
				return Sysctls{}, invalid("sysctl %q would change the host: the pod shares its ipc namespace", name)
			}
			s.IPC[key] = value
		case strings.HasPrefix(key, "net."):
			if n.Net == "" {
				return Sysctls{}, invalid("sysctl %q would change the host: the pod shares its network", name)
			}
			s.Net[key] = value
		case key == "kernel.domainname" && n.UTS:
			s.UTS[key] = value
		case key == "kernel.hostname":
			return Sysctls{}, invalid("sysctl %q: set the pod's hostname instead", name)
		default:
			return Sysctls{}, invalid("sysctl %q is not one of a namespace that the pod has", name)
		}
	}
	return s, nil
}

// proper is false for names that would lead elsewhere below /proc/sys.
func proper(key string) bool {
	path := swap(key)
	return filepath.IsLocal(path) && filepath.Clean(path) == path && !strings.ContainsRune(path, 0)
}

// dots turns a name written with slashes into one with dots; then a slash
// stands for a dot in a part, as sysctl(8) has it.
func dots(name string) string {
	if i := strings.IndexAny(name, "./"); i < 0 || name[i] == '.' {
		return name
	}
	return swap(name)
}

func swap(s string) string {
	return strings.Map(func(r rune) rune {
		switch r {
		case '.':
			return '/'
		case '/':
			return '.'
		}
		return r
	}, s)
}

func invalid(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, errdefs.ErrInvalidArgument)...)
}
