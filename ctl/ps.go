package ctl

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"strconv"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/go-units"

	"github.com/containerd-kuasar/containerd-kuasar/vmm"
)

// Sandbox is one that is on this node.
type Sandbox struct {
	ID           string      `json:"id"`
	Name         string      `json:"name,omitempty"`         // of the pod
	PodNamespace string      `json:"podNamespace,omitempty"` // Kubernetes's
	Namespace    string      `json:"namespace"`              // containerd's
	Sandboxer    string      `json:"sandboxer"`
	State        string      `json:"state"`
	Reason       string      `json:"reason,omitempty"` // why it is quarantined, or its records cannot be read
	VMM          string      `json:"vmm,omitempty"`
	Acceleration string      `json:"acceleration,omitempty"`
	Template     string      `json:"template,omitempty"` // its machine is a clone of
	Debug        bool        `json:"debug,omitempty"`    // its guest has a debug console
	Pid          uint32      `json:"pid,omitempty"`      // of the process that stands for it
	VCPUs        uint32      `json:"vcpus,omitempty"`    // of a machine
	Memory       uint64      `json:"memory,omitempty"`   // of a machine, in bytes
	CreatedAt    time.Time   `json:"createdAt"`
	Containers   []Container `json:"containers"`
}

// Container is one of a sandbox's.
type Container struct {
	ID    string `json:"id"`
	Name  string `json:"name,omitempty"`
	Image string `json:"image,omitempty"`
	State string `json:"state,omitempty"` // of its task; empty if it has none
}

// Sandboxes lists what is on this node, from our records and from the daemon.
// Without the daemon there is what was recorded last, and what only the daemon
// knows is missing: offline says why.
func (n *Node) Sandboxes(ctx context.Context) (all []Sandbox, offline, err error) {
	records, err := n.records()
	if err != nil {
		return nil, nil, err
	}
	all = []Sandbox{} // none is a list, too
	d, offline := dial(ctx, n.Address)
	if offline == nil {
		defer d.Close()
		known, err := d.sandboxes(ctx)
		if err != nil {
			return nil, nil, err
		}
		all = append(all, known...)
	}
	for _, r := range records {
		i := slices.IndexFunc(all, func(s Sandbox) bool { return s.ID == r.id && s.Sandboxer == r.sandboxer })
		if i < 0 {
			i, all = len(all), append(all, Sandbox{ID: r.id, Sandboxer: r.sandboxer})
		}
		all[i].take(r)
	}
	if offline == nil {
		if err := d.complete(ctx, all); err != nil {
			return nil, nil, err
		}
	}
	slices.SortFunc(all, func(a, b Sandbox) int {
		return cmp.Or(a.CreatedAt.Compare(b.CreatedAt), cmp.Compare(a.ID, b.ID))
	})
	return all, offline, nil
}

// take adds what is recorded.
func (s *Sandbox) take(r recorded) {
	s.Containers = []Container{}
	switch {
	case r.err != nil:
		s.State, s.Reason = "damaged", r.err.Error()
		return
	case r.Dead:
		s.State = "dead"
	default:
		s.State = string(r.State)
	}
	if r.Spec.ID != "" {
		s.Name, s.PodNamespace = r.name(), r.namespace()
		s.Namespace, s.CreatedAt = r.Spec.Namespace, r.Spec.CreatedAt
	}
	if r.sandboxer != "vmm" || len(r.Backend) == 0 {
		return
	}
	m, err := vmm.ReadRecord(r.dir, r.Backend)
	if err != nil {
		s.Reason = err.Error()
		return
	}
	s.VMM, s.Acceleration, s.Template, s.Debug = m.Hypervisor, string(m.Accel), m.Template, m.Debug()
	s.Pid, s.VCPUs, s.Memory = uint32(m.Pid), m.CPUs, m.Memory
}

// complete adds what the daemon knows.
func (d daemon) complete(ctx context.Context, all []Sandbox) error {
	containers, err := d.containers(ctx)
	if err != nil {
		return err
	}
	for i := range all {
		s := &all[i]
		s.Containers = append([]Container{}, containers[[2]string{s.Namespace, s.ID}]...)
		if s.Namespace == "" {
			continue // its records cannot be read
		}
		err := d.status(ctx, s)
		if errdefs.IsNotFound(err) || errdefs.IsNotImplemented(err) {
			continue // it is being removed, or its sandboxer did not start
		}
		if err != nil {
			return fmt.Errorf("status of sandbox %s: %w", s.ID, err)
		}
	}
	return nil
}

func ours(sandboxer string) bool { return slices.Contains(Sandboxers, sandboxer) }

// shortID is as much of an id as crictl shows.
const shortID = 13

// Print writes sandboxes as a table.
func Print(out io.Writer, all []Sandbox, now time.Time) error {
	t := newTable(out, "ID", "NAME", "NAMESPACE", "SANDBOXER", "STATE", "VMM", "PID", "VCPUS", "MEMORY", "AGE", "CONTAINERS")
	for _, s := range all {
		var pid, vcpus, memory, age string
		if s.Pid > 0 {
			pid = strconv.FormatUint(uint64(s.Pid), 10)
		}
		if s.VCPUs > 0 {
			vcpus, memory = strconv.FormatUint(uint64(s.VCPUs), 10), strconv.FormatUint(s.Memory>>20, 10)+" MiB"
		}
		if !s.CreatedAt.IsZero() {
			age = units.HumanDuration(now.Sub(s.CreatedAt))
		}
		machine := s.VMM
		if s.Acceleration != "" {
			machine += " (" + s.Acceleration + ")"
		}
		t.row(s.ID[:min(len(s.ID), shortID)], s.Name, cmp.Or(s.PodNamespace, s.Namespace), s.Sandboxer, s.State, machine, pid, vcpus, memory, age, strconv.Itoa(len(s.Containers)))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, s := range all {
		if s.Reason != "" {
			if _, err := fmt.Fprintf(out, "\n%s: %s\n", s.ID, clean(s.Reason)); err != nil {
				return err
			}
		}
	}
	return nil
}
