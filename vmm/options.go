package vmm

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"path/filepath"
	goruntime "runtime"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/pelletier/go-toml/v2"
)

// Annotation begins the pod annotations that set an option, such as
// "vmm.kuasar.io/memory" = "512", where the operator allows that.
const Annotation = "vmm.kuasar.io/"

// Options of a runtime handler, from its `options` table.
type Options struct {
	Hypervisor string // name of a Driver
	Path       string // of the VMM; empty for where its driver looks
	Machine    string // type of machine; empty for the driver's
	Accel      Accel

	Kernel, Initrd string
	KernelParams   string // added to the kernel's command line

	VCPUs  uint32 // of a pod without limits
	Memory uint64 // of a pod without limits, in bytes
	// Overhead is what the guest's kernel and agent need: a pod with a limit
	// has this beside.
	Overhead uint64
	// MaxVCPUs and MaxMemory are what a pod's machine can be resized to; a
	// machine that starts with more keeps that.
	MaxVCPUs  uint32
	MaxMemory uint64 // bytes
	Slots     int    // for devices plugged into a running machine
	// FreePageReporting has the guest give memory back that it has free.
	FreePageReporting bool

	Virtiofsd string // path; empty for where it is looked for
	Vsock     string // AutoVsock, VhostVsock or UserVsock
	VsockPath string // of vhost-device-vsock; empty for where it is looked for

	BootTimeout time.Duration // from the VMM's start to the agent's hello

	// Templates are for machines that are cloned from one that has booted.
	Templates bool

	// Pool is how many clones are kept ready, of pods without limits.
	Pool int

	// Debug opens the guest's debug console to this host's root.
	Debug bool

	// Allow are the keys that pods may set by annotations.
	Allow []string
}

// What Options.Vsock may be.
const (
	AutoVsock  = "auto"  // the kernel's where there is /dev/vhost-vsock
	VhostVsock = "vhost" // the kernel's
	UserVsock  = "user"  // vhost-device-vsock
)

const (
	// minMemory is the least that a guest boots in: 64 MiB do, 48 do not.
	minMemory = 64 << 20
	maxMemory = 1 << 44
	maxCPUs   = 288 // of a q35 without further options
	maxSlots  = 28  // on the root bus, beside the machine's own devices

	// defaultMaxCPUs bounds what a machine can be resized to if the operator
	// does not: the guest's kernel takes a quarter of a MiB for each processor
	// that it may get.
	defaultMaxCPUs = 8
)

// Defaults of a handler that sets nothing.
func Defaults() Options {
	return Options{
		Hypervisor: "qemu", Accel: Auto,
		Kernel: "/usr/share/kuasar/vmlinux", Initrd: "/usr/share/kuasar/initramfs.cpio",
		VCPUs: 1, Memory: 256 << 20, Overhead: 96 << 20, Slots: 3,
		MaxVCPUs: uint32(min(goruntime.NumCPU(), defaultMaxCPUs)),
		Vsock:    AutoVsock, BootTimeout: time.Minute,
	}
}

// key is one option by its name in TOML and annotations.
type key func(o *Options, v any) error

// keys are all of them. Those that name files of the host, or are no matter of a
// single pod, are marked: no annotation may set them, whatever the operator
// allows.
var keys = map[string]struct {
	set  key
	host bool
}{
	"hypervisor":          {set: text(func(o *Options) *string { return &o.Hypervisor })},
	"path":                {set: file(func(o *Options) *string { return &o.Path }), host: true},
	"machine":             {set: text(func(o *Options) *string { return &o.Machine })},
	"accel":               {set: setAccel},
	"kernel":              {set: file(func(o *Options) *string { return &o.Kernel }), host: true},
	"initrd":              {set: file(func(o *Options) *string { return &o.Initrd }), host: true},
	"kernel_params":       {set: text(func(o *Options) *string { return &o.KernelParams })},
	"vcpus":               {set: number(1, maxCPUs, func(o *Options, n int64) { o.VCPUs = uint32(n) })},
	"memory":              {set: number(minMemory>>20, maxMemory>>20, func(o *Options, n int64) { o.Memory = uint64(n) << 20 })},
	"overhead":            {set: number(minMemory>>20, maxMemory>>20, func(o *Options, n int64) { o.Overhead = uint64(n) << 20 })},
	"max_vcpus":           {set: number(1, maxCPUs, func(o *Options, n int64) { o.MaxVCPUs = uint32(n) })},
	"max_memory":          {set: number(0, maxMemory>>20, func(o *Options, n int64) { o.MaxMemory = uint64(n) << 20 })},
	"free_page_reporting": {set: truth(func(o *Options) *bool { return &o.FreePageReporting })},
	"hotplug_slots":       {set: number(0, maxSlots, func(o *Options, n int64) { o.Slots = int(n) })},
	"virtiofsd":           {set: file(func(o *Options) *string { return &o.Virtiofsd }), host: true},
	"vsock":               {set: choice(func(o *Options) *string { return &o.Vsock }, AutoVsock, VhostVsock, UserVsock)},
	"vsock_path":          {set: file(func(o *Options) *string { return &o.VsockPath }), host: true},
	"boot_timeout":        {set: number(1, 3600, func(o *Options, n int64) { o.BootTimeout = time.Duration(n) * time.Second })},
	"debug":               {set: truth(func(o *Options) *bool { return &o.Debug })},
	"templates":           {set: truth(func(o *Options) *bool { return &o.Templates })},
	"pool":                {set: number(0, maxPool, func(o *Options, n int64) { o.Pool = int(n) }), host: true},
	"allow":               {set: allow, host: true},
}

// With are the options with those of text, as TOML, in place.
func (o Options) With(text []byte) (Options, error) { return parse(text, nil, o) }

// parse reads a handler's options over the defaults, and then the pod's
// annotations.
func parse(toml []byte, annotations map[string]string, o Options) (Options, error) {
	if err := o.read(toml); err != nil {
		return o, err
	}
	for _, name := range slices.Sorted(maps.Keys(annotations)) {
		option, ours := strings.CutPrefix(name, Annotation)
		if !ours {
			continue
		}
		if !slices.Contains(o.Allow, option) {
			return o, invalid("annotation %s: pods of this runtime handler may set %s: the operator decides by allow", name, list(o.Allow))
		}
		if err := keys[option].set(&o, annotations[name]); err != nil {
			return o, invalid("annotation %s = %q: %v", name, annotations[name], err)
		}
	}
	return o, nil
}

func (o *Options) read(text []byte) error {
	table := map[string]any{}
	if err := toml.Unmarshal(text, &table); err != nil {
		return invalid("options of the runtime handler: %v", err)
	}
	for _, name := range slices.Sorted(maps.Keys(table)) {
		k, ok := keys[name]
		if !ok {
			return invalid("options of the runtime handler: unknown key %q, there are %s", name, list(slices.Sorted(maps.Keys(keys))))
		}
		if err := k.set(o, table[name]); err != nil {
			return invalid("options of the runtime handler: %s = %v: %v", name, table[name], err)
		}
	}
	if o.Pool > 0 && !o.Templates {
		return invalid("options of the runtime handler: pool = %d: the machines of a pool are clones: set templates = true, or pool = 0", o.Pool)
	}
	for _, name := range o.Allow {
		if k, ok := keys[name]; !ok || k.host {
			return invalid("options of the runtime handler: allow: %q is no key that pods may be allowed to set", name)
		}
	}
	return nil
}

func list(names []string) string { return cmp.Or(strings.Join(names, ", "), "none") }

func text(at func(*Options) *string) key {
	return func(o *Options, v any) error {
		s, ok := v.(string)
		if !ok || strings.ContainsFunc(s, func(r rune) bool { return r < ' ' }) {
			return fmt.Errorf("it must be a text of one line")
		}
		*at(o) = s
		return nil
	}
}

func file(at func(*Options) *string) key {
	return func(o *Options, v any) error {
		s, ok := v.(string)
		if !ok || !filepath.IsAbs(s) {
			return fmt.Errorf("it must be an absolute path")
		}
		*at(o) = s
		return nil
	}
}

func choice(at func(*Options) *string, of ...string) key {
	return func(o *Options, v any) error {
		s, ok := v.(string)
		if !ok || !slices.Contains(of, s) {
			return fmt.Errorf("it must be one of %s", strings.Join(of, ", "))
		}
		*at(o) = s
		return nil
	}
}

func setAccel(o *Options, v any) error {
	var s string
	err := choice(func(*Options) *string { return &s }, string(Auto), string(KVM), string(TCG))(o, v)
	if err == nil {
		o.Accel = Accel(s)
	}
	return err
}

// number takes one also as text, since annotations are that.
func number(least, most int64, set func(*Options, int64)) key {
	return func(o *Options, v any) error {
		n, ok := v.(int64)
		if s, is := v.(string); is {
			_, err := fmt.Sscanf(s, "%d", &n)
			ok = err == nil && fmt.Sprint(n) == s
		}
		if !ok || n < least || n > most {
			return fmt.Errorf("it must be a number from %d to %d", least, most)
		}
		set(o, n)
		return nil
	}
}

// truth takes one also as text.
func truth(at func(*Options) *bool) key {
	return func(o *Options, v any) error {
		b, ok := v.(bool)
		if s, is := v.(string); is {
			b, ok = s == "true", s == "true" || s == "false"
		}
		if !ok {
			return fmt.Errorf("it must be true or false")
		}
		*at(o) = b
		return nil
	}
}

func allow(o *Options, v any) error {
	all, ok := v.([]any)
	if !ok {
		return fmt.Errorf("it must be a list of keys")
	}
	o.Allow = nil
	for _, a := range all {
		o.Allow = append(o.Allow, fmt.Sprint(a))
	}
	return nil
}

// limits are what a pod's resources allow it in sum; 0 is no limit.
type limits struct {
	memory int64 // bytes
	quota  int64 // microseconds of processor time in each period
	period int64
}

// size makes a machine for a pod: what it is allowed, and what the guest needs
// itself.
func (o Options) size(l limits) (cpus uint32, memory uint64, err error) {
	cpus, memory = o.VCPUs, o.Memory
	if l.memory > 0 {
		memory = uint64(l.memory) + o.Overhead
	}
	if l.quota > 0 && l.period > 0 {
		cpus = uint32(min(maxCPUs, max(1, (l.quota+l.period-1)/l.period)))
	}
	const unit = 2 << 20 // as a memory device or a huge page wants it
	if memory = (memory + unit - 1) / unit * unit; memory > min(maxMemory, math.MaxInt64) {
		return 0, 0, invalid("the pod's memory limit of %d bytes is beyond what a machine has", l.memory)
	}
	return cpus, memory, nil
}

func invalid(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, errdefs.ErrInvalidArgument)...)
}
