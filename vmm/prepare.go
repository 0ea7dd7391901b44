package vmm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/identifiers"
	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/containerd-kuasar/containerd-kuasar/internal/devices"
	"github.com/containerd-kuasar/containerd-kuasar/internal/failpoint"
	"github.com/containerd-kuasar/containerd-kuasar/internal/trace"
	"github.com/containerd-kuasar/containerd-kuasar/sandbox"
	"github.com/containerd-kuasar/containerd-kuasar/sandbox/host"
)

var fpVolume = failpoint.New("vmm/prepare/volume")

// Prepare implements sandbox.Sandbox: the container's rootfs and volumes are
// mounted in the share, and its spec is rewritten for the guest.
func (p *pod) Prepare(ctx context.Context, c *sandbox.Container) (sandbox.Bundle, error) {
	b, err := p.prepare(ctx, c)
	if err != nil {
		return sandbox.Bundle{}, fmt.Errorf("prepare container %s of pod %s: %w", c.ID, p.id, err)
	}
	return b, nil
}

func (p *pod) prepare(ctx context.Context, c *sandbox.Container) (b sandbox.Bundle, err error) {
	ctx, span := trace.Start(ctx, "vmm.prepare")
	defer span.End(&err)
	if err := errors.Join(identifiers.Validate(c.ID), check(c)); err != nil {
		return b, err
	}
	if err := p.running(); err != nil {
		return b, err
	}
	share := filepath.Join(p.dir, shareDir)
	rootfs := c.Rootfs
	if len(rootfs) == 0 && c.Spec.Root != nil && filepath.IsAbs(c.Spec.Root.Path) {
		rootfs = []mount.Mount{{Type: "bind", Source: c.Spec.Root.Path, Options: []string{"rbind"}}}
	}
	defer func() {
		if err != nil {
			ctx, cancel := undoing(ctx)
			defer cancel()
			err = errors.Join(err, p.detachAll(ctx, c.ID))
		}
	}()
	if err := p.blockVolumes(ctx, c.ID, c.Spec.Linux); err != nil {
		return b, err
	}
	mounts, disk, err := p.root(ctx, c.ID, rootfs)
	if err != nil {
		return b, err
	}
	volumes := p.translate(c)
	if disk != "" {
		c.Spec.Root = &specs.Root{Path: disk, Readonly: c.Spec.Root != nil && c.Spec.Root.Readonly}
	}
	path, err := host.MakeBundleSeen(ctx, share, Seen, c.ID, c.Spec, mounts, nil)
	if err != nil {
		return b, err
	}
	if err := p.mount(path, volumes); err != nil {
		return b, errors.Join(err, p.release(c.ID))
	}
	b = sandbox.Bundle{Path: host.Bundle(Seen, c.ID), Options: c.Options}
	if disk == "" {
		b.Rootfs = filepath.Join(path, "rootfs")
	}
	return b, nil
}

// check finds what no container can be made of.
func check(c *sandbox.Container) error {
	switch {
	case c.Spec == nil:
		return invalid("it has no spec")
	case c.Spec.Process == nil:
		return invalid("its spec has no process: there is nothing to run")
	case c.Spec.Process.Terminal != c.IO.Terminal:
		return invalid("its spec says terminal=%t and its stdio says %t", c.Spec.Process.Terminal, c.IO.Terminal)
	}
	if err := checkDevices(c.Spec.Linux); err != nil {
		return err
	}
	if h := c.Spec.Hooks; h != nil {
		if n := len(h.Prestart) + len(h.CreateRuntime) + len(h.CreateContainer) + len(h.StartContainer) + len(h.Poststart) + len(h.Poststop); n > 0 { //nolint:staticcheck // Prestart is deprecated and still used
			return fmt.Errorf("its spec has %d hooks: those are programs of the host, and the container is in a virtual machine: %w", n, errdefs.ErrNotImplemented)
		}
	}
	return nil
}

// volume is a file or directory of the host that a container has.
type volume struct {
	source    string
	readOnly  bool
	recursive bool // readOnly is what is mounted below source, too
	private   bool // what is mounted below source later does not appear
}

// volumeDir is the directory of a bundle where its volumes are, by number.
const volumeDir = "volumes"

// translate rewrites the spec for the guest, and returns what has to be mounted
// for that.
func (p *pod) translate(c *sandbox.Container) []volume {
	var volumes []volume
	s := c.Spec
	for i, m := range s.Mounts {
		if m.Type != "bind" && !slices.Contains(m.Options, "bind") && !slices.Contains(m.Options, "rbind") {
			continue
		}
		s.Mounts[i].Source = filepath.Join(host.Bundle(Seen, c.ID), volumeDir, strconv.Itoa(len(volumes)))
		v := volume{
			source: m.Source, recursive: slices.Contains(m.Options, "rro"),
			private: !slices.ContainsFunc(m.Options, followed),
		}
		v.readOnly = v.recursive || slices.Contains(m.Options, "ro")
		if v.readOnly && !v.recursive && hasMounts(m.Source) {
			// The guest's kernel would extend it to those. The host holds it.
			s.Mounts[i].Options = slices.DeleteFunc(slices.Clone(m.Options), func(o string) bool { return o == "ro" })
		}
		volumes = append(volumes, v)
	}
	// The guest is the pod: what its containers share, the guest's own
	// namespaces are.
	v := host.View{Dir: filepath.Join(Seen, podFiles), Pids: []uint32{p.Pid(), uint32(os.Getpid())}}
	v.Apply(s)
	for i, m := range s.Mounts {
		if m.Destination == "/dev/shm" && m.Source == filepath.Join(v.Dir, "shm") {
			s.Mounts[i].Source = "/dev/shm" // memory is the guest's
		}
	}
	if s.Linux == nil {
		s.Linux = &specs.Linux{}
	}
	l := s.Linux
	if devices.All(l.Resources) {
		l.Devices = nil // those of the host: see task/container.Machine
	}
	l.Namespaces = slices.DeleteFunc(l.Namespaces, func(ns specs.LinuxNamespace) bool {
		// Paths are the host's, and name the pod's namespaces there.
		return ns.Path != ""
	})
	if !hasNamespace(l, specs.CgroupNamespace) && !admin(s.Process) {
		// As CRI does it on a host with cgroup v2, which the guest has anyway.
		l.Namespaces = append(l.Namespaces, specs.LinuxNamespace{Type: specs.CgroupNamespace})
	}
	l.CgroupsPath = "/kuasar/" + c.ID
	l.MountLabel = ""
	s.Process.SelinuxLabel, s.Process.ApparmorProfile = "", ""
	if r := l.Resources; r != nil {
		if r.CPU != nil {
			r.CPU.Cpus, r.CPU.Mems = "", "" // the host's numbers
		}
		r.HugepageLimits = nil
	}
	return volumes
}

// hasMounts says whether there are mounts below a directory.
func hasMounts(dir string) bool {
	real, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return false // it is missing, and the mount will say so
	}
	below, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) {
		found := strings.HasPrefix(m.Mountpoint, strings.TrimSuffix(real, "/")+"/")
		return !found, found
	})
	return err == nil && len(below) > 0
}

// followed says whether a mount with that option has what is mounted below its
// source later.
func followed(option string) bool {
	return slices.Contains([]string{"slave", "rslave", "shared", "rshared"}, option)
}

func hasNamespace(l *specs.Linux, kind specs.LinuxNamespaceType) bool {
	return slices.ContainsFunc(l.Namespaces, func(ns specs.LinuxNamespace) bool { return ns.Type == kind })
}

// admin says whether a process may manage cgroups, as those of privileged
// containers do.
func admin(p *specs.Process) bool {
	return p.Capabilities != nil && slices.Contains(p.Capabilities.Bounding, "CAP_SYS_ADMIN")
}

// mount puts volumes into a bundle.
func (p *pod) mount(bundle string, volumes []volume) error {
	if len(volumes) == 0 {
		return nil
	}
	dir := filepath.Join(bundle, volumeDir)
	if err := os.Mkdir(dir, 0o711); err != nil {
		return err
	}
	for i, v := range volumes {
		target := filepath.Join(dir, strconv.Itoa(i))
		info, err := os.Stat(v.source)
		if err != nil {
			return fmt.Errorf("volume: %w: %w", err, errdefs.ErrFailedPrecondition)
		}
		if info.IsDir() {
			err = os.Mkdir(target, 0o700)
		} else {
			err = os.WriteFile(target, nil, 0o600)
		}
		if err != nil {
			return err
		}
		// What is mounted below the source later may appear here too, but
		// nothing goes the other way.
		attr := unix.MountAttr{Propagation: unix.MS_SLAVE}
		if v.private {
			attr.Propagation = unix.MS_PRIVATE
		}
		var top uint64
		switch {
		case v.recursive:
			attr.Attr_set = unix.MOUNT_ATTR_RDONLY
		case v.readOnly:
			top = unix.MOUNT_ATTR_RDONLY
		}
		if err := bind(v.source, target, attr, top); err != nil {
			return err
		}
		fpVolume.Hit()
	}
	return nil
}

// Release implements sandbox.Sandbox.
func (p *pod) Release(ctx context.Context, id string) error {
	if err := identifiers.Validate(id); err != nil {
		return err
	}
	if err := p.detachAll(ctx, id); err != nil {
		return fmt.Errorf("release container %s: %w", id, err)
	}
	return p.release(id)
}

func (p *pod) release(id string) error {
	if err := identifiers.Validate(id); err != nil {
		return err
	}
	share := filepath.Join(p.dir, shareDir)
	dir := filepath.Join(host.Bundle(share, id), volumeDir)
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("release container %s: %w", id, err)
	}
	for _, e := range entries {
		target := filepath.Join(dir, e.Name())
		if strings.Trim(e.Name(), "0123456789") != "" {
			continue
		}
		if err := host.Unmount(target); err != nil {
			return fmt.Errorf("release container %s: %w", id, err)
		}
		// Only what is empty, so that nothing is deleted through a mount.
		if err := os.Remove(target); err != nil {
			return fmt.Errorf("release container %s: %w", id, err)
		}
	}
	return host.RemoveBundle(share, id)
}
