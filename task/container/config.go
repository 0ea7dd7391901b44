package container

import (
	"errors"
	"os"
	"path/filepath"
	"slices"

	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runc/libcontainer/specconv"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/opencontainers/selinux/go-selinux"

	"github.com/containerd-kuasar/containerd-kuasar/internal/rlimit"
	"github.com/containerd-kuasar/containerd-kuasar/task/server"
)

// config turns the bundle's spec into libcontainer's. That takes the working
// directory for the bundle, which is not ours to change: paths are made
// absolute beforehand, and the label it leaves corrected.
func config(ref server.Ref, spec *specs.Spec, opts *options.Options) (*configs.Config, error) {
	bundle, err := filepath.EvalSymlinks(ref.Bundle)
	if err != nil {
		return nil, missing("bundle", ref.Bundle, "create the container again")
	}
	if spec.Root == nil || spec.Root.Path == "" {
		return nil, invalid("spec of bundle %s has no root.path", bundle)
	}
	if err := check(spec.Process); err != nil {
		return nil, err
	}
	if !filepath.IsAbs(spec.Root.Path) {
		spec.Root.Path = filepath.Join(bundle, spec.Root.Path)
	}
	if _, err := os.Stat(spec.Root.Path); errors.Is(err, os.ErrNotExist) {
		return nil, missing("rootfs", spec.Root.Path, "mount it, or check the snapshotter")
	}
	for i, m := range spec.Mounts {
		// Sources of other mounts are not paths.
		if !filepath.IsAbs(m.Source) && slices.ContainsFunc(m.Options, bind) {
			spec.Mounts[i].Source = filepath.Join(bundle, m.Source)
		}
	}
	c, err := specconv.CreateLibcontainerConfig(&specconv.CreateOpts{
		CgroupName:       ref.ID,
		UseSystemdCgroup: opts.SystemdCgroup,
		NoPivotRoot:      opts.NoPivotRoot,
		NoNewKeyring:     opts.NoNewKeyring,
		Spec:             spec,
	})
	if err != nil {
		return nil, invalid("spec of bundle %s: %w", bundle, err)
	}
	c.Labels[len(c.Labels)-1] = "bundle=" + bundle
	return c, nil
}

func bind(option string) bool { return option == "bind" || option == "rbind" }

// check finds what would only come up as a cryptic error of the first process.
func check(p *specs.Process) error {
	switch {
	case p == nil:
		return invalid("spec has no process")
	case p.Cwd == "":
		return invalid("spec has no process.cwd")
	case !filepath.IsAbs(p.Cwd):
		return invalid("process.cwd %q is not absolute", p.Cwd)
	case len(p.Args) == 0:
		return invalid("spec has no process.args: give a command")
	case p.SelinuxLabel != "" && !selinux.GetEnabled():
		return invalid("process.selinuxLabel %q is set, but SELinux is off", p.SelinuxLabel)
	}
	return nil
}

func process(p *specs.Process) (*libcontainer.Process, error) {
	if err := check(p); err != nil {
		return nil, err
	}
	lp := &libcontainer.Process{
		Args:            p.Args,
		Env:             p.Env,
		UID:             int(p.User.UID),
		GID:             int(p.User.GID),
		Cwd:             p.Cwd,
		Label:           p.SelinuxLabel,
		NoNewPrivileges: &p.NoNewPrivileges,
		AppArmorProfile: p.ApparmorProfile,
		Scheduler:       p.Scheduler,
		IOPriority:      p.IOPriority,
		LogLevel:        "3", // warnings; see logrus.Level
	}
	if s := p.ConsoleSize; s != nil {
		lp.ConsoleWidth, lp.ConsoleHeight = uint16(s.Width), uint16(s.Height)
	}
	if c := p.Capabilities; c != nil {
		lp.Capabilities = &configs.Capabilities{
			Bounding:    c.Bounding,
			Effective:   c.Effective,
			Inheritable: c.Inheritable,
			Permitted:   c.Permitted,
			Ambient:     c.Ambient,
		}
	}
	for _, g := range p.User.AdditionalGids {
		lp.AdditionalGroups = append(lp.AdditionalGroups, int(g))
	}
	for _, l := range p.Rlimits {
		kind, ok := rlimit.Kinds[l.Type]
		if !ok {
			return nil, invalid("process.rlimits has unknown type %q", l.Type)
		}
		lp.Rlimits = append(lp.Rlimits, configs.Rlimit{Type: kind, Hard: l.Hard, Soft: l.Soft})
	}
	var err error
	if lp.CPUAffinity, err = configs.ConvertCPUAffinity(p.ExecCPUAffinity); err != nil {
		return nil, invalid("process.execCPUAffinity: %w", err)
	}
	return lp, nil
}
