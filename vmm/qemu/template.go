package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/digitalocean/go-qemu/qmp"

	"github.com/containerd-kuasar/containerd-kuasar/internal/trace"
	"github.com/containerd-kuasar/containerd-kuasar/task/api"
	"github.com/containerd-kuasar/containerd-kuasar/vmm"
)

// A template is a machine that has no devices but ports for them, and has been
// migrated to a file: its state without its memory, which is a file of its own
// (x-ignore-shared). Neither vhost-user's vsock nor its file systems can migrate,
// so a clone has all of its devices plugged. What serves them has to see the
// guest's memory: hence it is copied, and not mapped privately.

// Files of a template.
const (
	stateFile  = "state"
	memoryFile = "memory"
)

// ports are those of a template for what a pod has from the start: the vsock
// device, the share and interfaces.
const ports = 4

func port(i int) string { return "port" + strconv.Itoa(i) }

var _ vmm.Templater = Driver{}

// Inputs implements vmm.Templater.
func (Driver) Inputs(c vmm.Config) (files []string, text string, err error) {
	program, err := Program(c.VMM)
	if err != nil {
		return nil, "", err
	}
	files = []string{program, c.Kernel, c.Initrd}
	rom := filepath.Join(filepath.Dir(filepath.Dir(program)), "share", "qemu", firmware)
	if _, err := os.Stat(rom); err == nil {
		files = append(files, rom)
	}
	c.ID = "template"
	l := &line{args: []string{program}}
	l.template(c, nil)
	return files, strings.Join(l.args, "\x00"), nil
}

// template is the line of a machine to be saved.
func (l *line) template(c vmm.Config, ram *os.File) {
	l.common(c, ram)
	c.Cmdline = strings.TrimSpace(c.Cmdline + " " + api.TemplateParam)
	l.kernel(c)
}

// clone is the line of a machine that waits for a template's state. A kernel it
// has in its memory.
func (l *line) clone(c vmm.Config, ram *os.File) {
	l.common(c, ram)
	l.add("-S", "-incoming", "defer")
}

// common is what a template and its clones must both have, in the same order.
func (l *line) common(c vmm.Config, ram *os.File) {
	l.board(c)
	// Only memory that is a file by its name is left out of the state.
	l.add("-object", option("memory-backend-file", "id=mem", "size="+mebibytes(c.Memory), "share=on", "mem-path=/proc/self/fd/"+l.file(ram)))
	l.console(c)
	l.slots(c)
	for i := range ports {
		l.port(port(i), c.Slots+i+1)
	}
}

// template implements vmm.Template.
type template struct {
	*machine
	ram *vmm.RAM
}

// StartTemplate implements vmm.Templater.
func (Driver) StartTemplate(ctx context.Context, c vmm.Config) (vmm.Template, error) {
	ram, err := vmm.NewRAM(c.Memory)
	if err != nil {
		return nil, err
	}
	m, err := launch(ctx, c, func(l *line) error { l.template(c, ram.File()); return nil })
	if err != nil {
		return nil, errors.Join(err, ram.Close())
	}
	return &template{m, ram}, nil
}

// Save implements vmm.Template.
func (t *template) Save(ctx context.Context, dir string) error {
	err := t.do(ctx, "save the machine", func(s *session) error {
		if err := s.run(ctx, "stop", nil, nil); err != nil {
			return err
		}
		f, err := os.OpenFile(filepath.Join(dir, stateFile), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if err != nil {
			return err
		}
		defer f.Close()
		return s.migrate(ctx, "migrate", f)
	})
	if err == nil {
		err = t.ram.Save(ctx, filepath.Join(dir, memoryFile))
	}
	return errors.Join(err, t.ram.Close())
}

// migrate runs a command that reads or writes the machine's state, to its end.
func (s *session) migrate(ctx context.Context, command string, state *os.File) (err error) {
	ctx, span := trace.Start(ctx, "qemu."+command)
	defer span.End(&err)
	on := func(name string) table { return table{"capability": name, "state": true} }
	err = s.run(ctx, "migrate-set-capabilities", table{"capabilities": []table{on("x-ignore-shared"), on("events")}}, nil)
	if err != nil {
		return err
	}
	// By descriptor: QEMU may start no programs.
	if err := s.run(ctx, "getfd", table{"fdname": "state"}, nil, state); err != nil {
		return err
	}
	if err := s.run(ctx, command, table{"uri": "fd:state"}, nil); err != nil {
		return err
	}
	e, err := s.await(ctx, func(e qmp.Event) bool {
		return e.Event == "MIGRATION" && (e.Data["status"] == "completed" || e.Data["status"] == "failed")
	})
	if err == nil && e.Data["status"] == "failed" {
		err = fmt.Errorf("%s: QEMU's log says why: %w", command, errdefs.ErrFailedPrecondition)
	}
	return err
}

// Load implements vmm.Templater.
func (Driver) Load(ctx context.Context, c vmm.Config, dir string) (err error) {
	if err := fits(c); err != nil {
		return err
	}
	ram, err := vmm.NewRAM(c.Memory)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, ram.Close()) }()
	state, err := os.Open(filepath.Join(dir, stateFile))
	if err != nil {
		return err
	}
	defer state.Close()
	m, err := launch(ctx, c, func(l *line) error { l.clone(c, ram.File()); return nil })
	if err != nil {
		return err
	}
	return m.do(ctx, "load the machine", func(s *session) error {
		if err := ram.Fill(ctx, c.Process(), filepath.Join(dir, memoryFile)); err != nil {
			return err
		}
		return s.migrate(ctx, "migrate-incoming", state)
	})
}

// Resume implements vmm.Templater.
func (Driver) Resume(ctx context.Context, c vmm.Config) (vmm.VM, error) {
	if err := fits(c); err != nil {
		return nil, err
	}
	m := newMachine(c)
	return m, m.do(ctx, "resume the machine", func(s *session) error {
		if err := s.equip(ctx, c); err != nil {
			return err
		}
		return s.run(ctx, "cont", nil, nil)
	})
}

// fits says whether there are ports for all devices of the start.
func fits(c vmm.Config) error {
	if n := 1 + len(c.Shares) + len(c.NICs) + len(c.Disks); n > ports {
		return fmt.Errorf("the machine has %d devices, its template's have at most %d: %w", n, ports, errdefs.ErrNotImplemented)
	}
	return nil
}

// equip plugs all of the machine's devices, each into a port of its own.
func (s *session) equip(ctx context.Context, c vmm.Config) (err error) {
	ctx, span := trace.Start(ctx, "qemu.devices")
	defer span.End(&err)
	next := 0
	plug := func(device table) error {
		device["bus"] = port(next)
		next++
		return s.run(ctx, "device_add", device, nil)
	}
	if err := s.vsock(ctx, c.Vsock, plug); err != nil {
		return err
	}
	for i, share := range c.Shares {
		id := "share" + strconv.Itoa(i)
		if err := s.chardev(ctx, id, table{"type": "unix", "data": table{"path": share.Socket}}); err != nil {
			return err
		}
		if err := plug(table{"driver": "vhost-user-fs-pci", "chardev": id, "tag": share.Tag, "queue-size": 1024}); err != nil {
			return err
		}
	}
	for _, n := range c.NICs {
		if len(n.More) > 0 {
			return fmt.Errorf("plug interface %s: more than one queue: %w", n.ID, errdefs.ErrNotImplemented)
		}
		if err := s.netdev(ctx, n); err != nil {
			return err
		}
		if err := plug(nic(n)); err != nil {
			return err
		}
	}
	for _, d := range c.Disks {
		if err := s.start(ctx, d, plug); err != nil {
			return err
		}
	}
	return nil
}

// start is for a disk of a machine that does not run yet.
func (s *session) start(ctx context.Context, d vmm.Disk, plug func(table) error) error {
	f, err := openDisk(d)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := s.node(ctx, d, f); err != nil {
		return err
	}
	return plug(blk(d))
}

// vsock is first: the agent says hello by it.
func (s *session) vsock(ctx context.Context, v vmm.Vsock, plug func(table) error) error {
	const name = "vsock"
	switch {
	case v.Vhost != nil:
		if err := s.run(ctx, "getfd", table{"fdname": name}, nil, v.Vhost); err != nil {
			return err
		}
		return plug(table{"driver": "vhost-vsock-pci", "guest-cid": v.CID, "vhostfd": name})
	case v.User != nil:
		if err := s.run(ctx, "getfd", table{"fdname": name}, nil, v.User); err != nil {
			return err
		}
		if err := s.chardev(ctx, name, table{"type": "fd", "data": table{"str": name}}); err != nil {
			return err
		}
		return plug(table{"driver": "vhost-user-vsock-pci", "chardev": name})
	}
	return nil
}

// chardev connects to a socket.
func (s *session) chardev(ctx context.Context, id string, address table) error {
	backend := table{"type": "socket", "data": table{"addr": address, "server": false}}
	return s.run(ctx, "chardev-add", table{"id": id, "backend": backend}, nil)
}
