package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/containerd/errdefs"
	"github.com/digitalocean/go-qemu/qmp"

	"github.com/containerd-kuasar/containerd-kuasar/internal/failpoint"
	"github.com/containerd-kuasar/containerd-kuasar/vmm"
)

// Between the two that a disk is to QEMU: a backend and a device.
var (
	fpNodeAdded = failpoint.New("vmm/qemu/added")
	fpUnplugged = failpoint.New("vmm/qemu/unplugged")
)

// machine is the vmm.VM of a QEMU.
type machine struct {
	path  string        // of the control socket
	slots int           // for what is plugged
	most  size          // that it can be resized to
	turn  chan struct{} // holds a token while there is a session: QEMU has one at a time
}

var (
	_ vmm.DiskPlugger = (*machine)(nil)
	_ vmm.NICPlugger  = (*machine)(nil)
	_ vmm.Resizer     = (*machine)(nil)
)

func newMachine(c vmm.Config) *machine {
	return &machine{
		path: filepath.Join(c.Dir, "qmp"), slots: c.Slots, most: size{c.MaxCPUs, c.MaxMemory}, turn: make(chan struct{}, 1),
	}
}

// do runs f with a session.
func (m *machine) do(ctx context.Context, what string, f func(*session) error) error {
	select {
	case m.turn <- struct{}{}:
		defer func() { <-m.turn }()
	case <-ctx.Done():
		return fmt.Errorf("%s: %w", what, ctx.Err())
	}
	s, err := open(ctx, m.path)
	if err == nil {
		err = errors.Join(f(s), s.close())
	}
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// table is a JSON object.
type table map[string]any

// undoTime bounds the undoing of what was half done, whose caller may have given
// up.
const undoTime = 10 * time.Second

// PlugDisk implements vmm.DiskPlugger.
func (m *machine) PlugDisk(ctx context.Context, d vmm.Disk) error {
	what, began := "plug disk "+d.ID, false
	f, err := openDisk(d)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	defer f.Close()
	err = m.do(ctx, what, func(s *session) error {
		node := s.node(ctx, d, f)
		if began = !errdefs.IsFailedPrecondition(node); node != nil {
			return node
		}
		fpNodeAdded.Hit()
		return s.plug(ctx, m.slots, blk(d))
	})
	if err == nil || !began {
		return err
	}
	return undone(ctx, err, func(ctx context.Context) error { return m.UnplugDisk(ctx, d.ID) })
}

// undone takes back a plug that failed, and whose caller may have given up. What is
// left of it depends on how far QEMU came, which a session that was cut off does
// not tell.
func undone(ctx context.Context, err error, unplug func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
	defer cancel()
	if undo := unplug(ctx); undo != nil && !errdefs.IsNotFound(undo) {
		err = errors.Join(err, undo)
	}
	return err
}

// openDisk opens what a disk is on, for QEMU, which need not be able to.
func openDisk(d vmm.Disk) (*os.File, error) {
	mode := os.O_RDWR
	if d.ReadOnly {
		mode = os.O_RDONLY
	}
	f, err := os.OpenFile(d.Path, mode, 0)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", err, errdefs.ErrFailedPrecondition)
	}
	return f, nil
}

// node makes a disk's backend of a file, which QEMU refuses if there is one of
// that name.
func (s *session) node(ctx context.Context, d vmm.Disk, f *os.File) error {
	var set struct {
		ID int `json:"fdset-id"`
	}
	if err := s.run(ctx, "add-fd", nil, &set, f); err != nil {
		return err
	}
	err := s.run(ctx, "blockdev-add", table{
		"driver": "raw", "node-name": d.ID, "read-only": d.ReadOnly,
		"file": table{"driver": protocol(d.Path), "filename": "/dev/fdset/" + strconv.Itoa(set.ID), "locking": "off"},
	}, nil)
	if errdefs.IsFailedPrecondition(err) {
		return err // and QEMU closes the file with the session
	}
	// The backend has its own by now.
	return errors.Join(err, s.run(ctx, "remove-fd", table{"fdset-id": set.ID}, nil))
}

// blk is a disk as the guest sees it.
func blk(d vmm.Disk) table {
	return table{"driver": "virtio-blk-pci", "drive": d.ID, "id": d.ID, "serial": d.ID}
}

// UnplugDisk implements vmm.DiskPlugger. The backend goes also where the device
// is gone already: an earlier call may have been cut off between the two.
func (m *machine) UnplugDisk(ctx context.Context, id string) error {
	return m.do(ctx, "unplug disk "+id, func(s *session) error {
		return s.remove(ctx, id, "blockdev-del", table{"node-name": id})
	})
}

// remove unplugs a device, and removes its backend by a command.
func (s *session) remove(ctx context.Context, id, command string, args table) error {
	gone := s.unplug(ctx, id)
	if gone != nil && !errdefs.IsNotFound(gone) {
		return gone
	}
	fpUnplugged.Hit()
	err := s.run(ctx, command, args, nil)
	if gone != nil && (errdefs.IsNotFound(err) || errdefs.IsFailedPrecondition(err)) {
		return gone // there is neither, which QEMU says of a disk's by no class of its own
	}
	return err
}

// PlugNIC implements vmm.NICPlugger.
func (m *machine) PlugNIC(ctx context.Context, n vmm.NIC) error {
	if len(n.More) > 0 {
		return fmt.Errorf("plug interface %s: more than one queue: %w", n.ID, errdefs.ErrNotImplemented)
	}
	began := false
	err := m.do(ctx, "plug interface "+n.ID, func(s *session) error {
		backend := s.netdev(ctx, n)
		if began = !errdefs.IsFailedPrecondition(backend); backend != nil {
			return backend
		}
		return s.plug(ctx, m.slots, nic(n))
	})
	if err == nil || !began {
		return err
	}
	return undone(ctx, err, func(ctx context.Context) error { return m.UnplugNIC(ctx, n.ID) })
}

// netdev makes an interface's backend of its tap, which QEMU refuses if there is
// one of that name.
func (s *session) netdev(ctx context.Context, n vmm.NIC) error {
	name := "tap-" + n.ID
	if err := s.run(ctx, "getfd", table{"fdname": name}, nil, n.Tap); err != nil {
		return err
	}
	err := s.run(ctx, "netdev_add", table{"type": "tap", "id": n.ID, "fd": name}, nil)
	if err != nil {
		err = errors.Join(err, s.run(ctx, "closefd", table{"fdname": name}, nil))
	}
	return err
}

// nic is an interface as the guest sees it.
func nic(n vmm.NIC) table {
	device := table{"driver": "virtio-net-pci", "netdev": n.ID, "id": n.ID, "mac": n.MAC.String(), "romfile": ""}
	if n.MTU > 0 {
		device["host_mtu"] = n.MTU
	}
	return device
}

// UnplugNIC implements vmm.NICPlugger, as UnplugDisk.
func (m *machine) UnplugNIC(ctx context.Context, id string) error {
	return m.do(ctx, "unplug interface "+id, func(s *session) error {
		return s.remove(ctx, id, "netdev_del", table{"id": id})
	})
}

// plug adds a device in the first free slot. QEMU knows which are: nothing
// needs to be remembered.
func (s *session) plug(ctx context.Context, slots int, device table) error {
	err := errors.New("the machine has none (hotplug_slots)")
	for i := range slots {
		device["bus"], device["addr"] = slot(i), "0" // a port takes one device
		if err = s.run(ctx, "device_add", device, nil); !errdefs.IsFailedPrecondition(err) {
			return err
		}
	}
	return fmt.Errorf("no slot of %d takes it: %w: %w", slots, errdefs.ErrResourceExhausted, err)
}

// unplug removes a device and waits until the guest let go of it.
func (s *session) unplug(ctx context.Context, id string) error {
	err := s.run(ctx, "device_del", table{"id": id}, nil)
	if err != nil {
		return err
	}
	_, err = s.await(ctx, func(e qmp.Event) bool { return e.Event == "DEVICE_DELETED" && e.Data["device"] == id })
	return err
}
