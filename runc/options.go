package runc

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"

	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"github.com/pelletier/go-toml/v2"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/containerd-kuasar/containerd-kuasar/sandbox/host"
)

// Options of a runtime handler, from its `options` table. Those of the stock
// runc handler that are about containers have the same names and meanings.
type Options struct {
	// SystemdCgroup has systemd make the containers' cgroups. Unset follows
	// the pod: systemd if its cgroup parent is a slice and systemd runs.
	SystemdCgroup *bool

	NoPivotRoot  bool   // for rootfs on a ramdisk
	NoNewKeyring bool   // containers share the worker's session keyring
	IoUid, IoGid uint32 // owner of the FIFOs that a container has as stdio

	// Sysctls of a pod with a network of its own. See host.Defaults.
	EnableUnprivilegedPorts, EnableUnprivilegedICMP bool
}

// keys are the names in TOML without case and underscores: CRI's own options
// are written one way, those of the stock handler the other.
var keys = map[string]struct {
	name string
	set  func(*Options, any) error
}{
	"systemdcgroup": {"SystemdCgroup", func(o *Options, v any) error {
		o.SystemdCgroup = new(bool)
		return boolean(v, o.SystemdCgroup)
	}},
	"nopivotroot":             {"NoPivotRoot", func(o *Options, v any) error { return boolean(v, &o.NoPivotRoot) }},
	"nonewkeyring":            {"NoNewKeyring", func(o *Options, v any) error { return boolean(v, &o.NoNewKeyring) }},
	"iouid":                   {"IoUid", func(o *Options, v any) error { return number(v, &o.IoUid) }},
	"iogid":                   {"IoGid", func(o *Options, v any) error { return number(v, &o.IoGid) }},
	"enableunprivilegedports": {"enable_unprivileged_ports", func(o *Options, v any) error { return boolean(v, &o.EnableUnprivilegedPorts) }},
	"enableunprivilegedicmp":  {"enable_unprivileged_icmp", func(o *Options, v any) error { return boolean(v, &o.EnableUnprivilegedICMP) }},
}

// Parse reads a handler's options over the defaults.
func Parse(text []byte, o Options) (Options, error) {
	table := map[string]any{}
	if err := toml.Unmarshal(text, &table); err != nil {
		return o, invalid("options of the runtime handler: %v", err)
	}
	for _, name := range slices.Sorted(maps.Keys(table)) {
		key, ok := keys[strings.ToLower(strings.ReplaceAll(name, "_", ""))]
		if !ok {
			return o, invalid("options of the runtime handler: unknown key %q, allowed are %s", name, strings.Join(allowed(), ", "))
		}
		if err := key.set(&o, table[name]); err != nil {
			return o, invalid("options of the runtime handler: %s = %v: %v", name, table[name], err)
		}
	}
	return o, nil
}

func allowed() []string {
	var names []string
	for _, k := range keys {
		names = append(names, k.name)
	}
	slices.Sort(names)
	return names
}

func boolean(v any, to *bool) error {
	b, ok := v.(bool)
	if !ok {
		return fmt.Errorf("it must be true or false")
	}
	*to = b
	return nil
}

func number(v any, to *uint32) error {
	n, ok := v.(int64)
	if !ok || n < 0 || n > math.MaxUint32 {
		return fmt.Errorf("it must be a number from 0 to %d", uint32(math.MaxUint32))
	}
	*to = uint32(n)
	return nil
}

// systemd decides on the driver of a pod's cgroups. running is whether systemd
// runs here.
func (o Options) systemd(parent string, running bool) (bool, error) {
	slice := strings.HasSuffix(parent, ".slice")
	if o.SystemdCgroup == nil {
		return running && slice, nil
	}
	switch {
	case !*o.SystemdCgroup:
		return false, nil
	case !running:
		return false, fmt.Errorf("options of the runtime handler: SystemdCgroup = true, but systemd does not run here: leave it out: %w", errdefs.ErrFailedPrecondition)
	case parent != "" && !slice:
		return false, invalid("options of the runtime handler: SystemdCgroup = true, but the pod's cgroup parent %q is no slice: the kubelet's cgroupDriver must be systemd too", parent)
	}
	return true, nil
}

// task are the options for the agent: the client's for this task, with the
// handler's where they are about the node.
func (o Options) task(client *anypb.Any, systemd bool) (*anypb.Any, error) {
	t := &options.Options{NoPivotRoot: o.NoPivotRoot, NoNewKeyring: o.NoNewKeyring, IoUid: o.IoUid, IoGid: o.IoGid}
	if client.MessageIs(t) {
		c := &options.Options{}
		if err := proto.Unmarshal(client.GetValue(), c); err != nil {
			return nil, invalid("options of the task: %v", err)
		}
		proto.Merge(t, c)
	}
	t.SystemdCgroup = systemd
	return typeurl.MarshalAnyToProto(t)
}

// Defaults of a handler without options, as those of containerd's CRI.
func Defaults() Options {
	return Options{EnableUnprivilegedPorts: true, EnableUnprivilegedICMP: true}
}

func (o Options) sysctls() host.Defaults {
	return host.Defaults{UnprivilegedPorts: o.EnableUnprivilegedPorts, UnprivilegedICMP: o.EnableUnprivilegedICMP}
}

func invalid(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, errdefs.ErrInvalidArgument)...)
}
