package host

import (
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// criSandbox is the annotation that CRI puts on every container of a pod.
const criSandbox = "io.kubernetes.cri.sandbox-id"

// View is a pod as its containers see it. An empty path is the host's
// namespace.
type View struct {
	Net, IPC, UTS, User, PID string

	// Pids are processes that stood for the sandbox in its life. CRI names
	// the pod's namespaces by them, as /proc/<pid>/ns/<type>.
	Pids []uint32

	// Dir is the sandbox's, HostIPC whether /dev/shm is the host's.
	Dir     string
	HostIPC bool
}

// SharesPID says whether the container asks for the pod's process id
// namespace, or the host's where the pod has the host's: for View.PID. One of
// its own, or that of a certain other container, it has already in its spec.
func (v View) SharesPID(s *specs.Spec) bool {
	if s.Linux == nil {
		return false
	}
	for _, ns := range s.Linux.Namespaces {
		if ns.Type == specs.PIDNamespace {
			pid, ok := process(ns)
			return ok && slices.Contains(v.Pids, pid)
		}
	}
	return false
}

// Apply rewrites a container's spec for its pod: its namespaces become the
// pod's, and it gets the pod's files where it has none of its own. It may be
// applied twice.
func (v View) Apply(s *specs.Spec) {
	if s.Linux != nil {
		v.namespaces(s)
	}
	v.mounts(s)
}

func (v View) namespaces(s *specs.Spec) {
	ours := s.Linux.Namespaces[:0:0]
	for _, ns := range s.Linux.Namespaces {
		path, shared := v.path(s, ns)
		switch {
		case !shared:
		case path == "":
			continue // the host's
		default:
			ns.Path = path
			if ns.Type == specs.UserNamespace {
				// They are the namespace's, which is joined.
				s.Linux.UIDMappings, s.Linux.GIDMappings = nil, nil
			}
		}
		ours = append(ours, ns)
	}
	s.Linux.Namespaces = ours
}

// path is where the container finds the namespace if it shares the pod's.
func (v View) path(s *specs.Spec, ns specs.LinuxNamespace) (path string, shared bool) {
	pods := map[specs.LinuxNamespaceType]string{
		specs.NetworkNamespace: v.Net,
		specs.IPCNamespace:     v.IPC,
		specs.UTSNamespace:     v.UTS,
		specs.UserNamespace:    v.User,
		specs.PIDNamespace:     v.PID,
	}
	path, known := pods[ns.Type]
	if !known {
		return "", false
	}
	pid, named := process(ns)
	named = named && slices.Contains(v.Pids, pid)
	switch ns.Type {
	case specs.PIDNamespace:
		return path, named
	case specs.UserNamespace:
		if v.User == "" {
			return "", named // one of its own is its affair
		}
	}
	// What CRI wrote is the pod's, though its process may be one we forgot.
	// A client that makes a container without naming a namespace means the
	// pod's too.
	return path, named || ns.Path == "" || ns.Path == path || s.Annotations[criSandbox] != ""
}

// process reads /proc/<pid>/ns/<type>.
func process(ns specs.LinuxNamespace) (uint32, bool) {
	rest, ok := strings.CutPrefix(ns.Path, "/proc/")
	if !ok {
		return 0, false
	}
	number, ok := strings.CutSuffix(rest, "/ns/"+files[ns.Type])
	if !ok {
		return 0, false
	}
	pid, err := strconv.ParseUint(number, 10, 32)
	return uint32(pid), err == nil
}

// mounts gives the container the pod's files, as CRI would that finds them in
// its own directory.
func (v View) mounts(s *specs.Spec) {
	mode := "rw"
	if s.Root != nil && s.Root.Readonly {
		mode = "ro"
	}
	for _, f := range v.Files() {
		i := slices.IndexFunc(s.Mounts, func(m specs.Mount) bool { return filepath.Clean(m.Destination) == f.Destination })
		switch {
		case f.Destination == devShm:
			f.Options = append(f.Options, "rw")
		default:
			f.Options = append(f.Options, mode)
		}
		switch {
		case i < 0:
			s.Mounts = insert(s.Mounts, f)
		case f.Destination == devShm && s.Mounts[i].Type == "tmpfs":
			s.Mounts[i] = f // every spec has this one by default
		}
	}
}

// insert puts m before the first mount below it, else at the end: there it is
// above what a mount of its parent would hide.
func insert(mounts []specs.Mount, m specs.Mount) []specs.Mount {
	i := slices.IndexFunc(mounts, func(o specs.Mount) bool {
		return strings.HasPrefix(filepath.Clean(o.Destination), m.Destination+"/")
	})
	if i < 0 {
		i = len(mounts)
	}
	return slices.Insert(mounts, i, m)
}

// Files are the mounts of the pod's files, without rw or ro.
func (v View) Files() []specs.Mount {
	shm := filepath.Join(v.Dir, "shm")
	if v.HostIPC {
		shm = devShm
	}
	all := []specs.Mount{
		{Destination: etcHostname, Source: filepath.Join(v.Dir, "hostname")},
		{Destination: etcHosts, Source: filepath.Join(v.Dir, "hosts")},
		{Destination: etcResolv, Source: filepath.Join(v.Dir, "resolv.conf")},
		{Destination: devShm, Source: shm},
	}
	for i := range all {
		all[i].Type = "bind"
		all[i].Options = []string{"rbind", "rprivate"}
	}
	return all
}
