package ctl

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/containerd-kuasar/containerd-kuasar/sandbox"
	"github.com/containerd-kuasar/containerd-kuasar/vmm"
)

// recorded is a sandbox of ours as its records say.
type recorded struct {
	id, sandboxer, dir string
	sandbox.Recorded
	err error // why they cannot be read
}

// name is the pod's, and namespace Kubernetes's, empty for what is no pod.
func (r recorded) name() string {
	return r.Spec.Config.GetMetadata().GetName()
}

func (r recorded) namespace() string { return r.Spec.Config.GetMetadata().GetNamespace() }

// records reads those of all of our sandboxes. One that cannot be read does not
// hide the others.
func (n *Node) records() ([]recorded, error) {
	var all []recorded
	for _, sandboxer := range Sandboxers {
		entries, err := os.ReadDir(n.dir(sandboxer))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		for _, e := range entries {
			if !e.IsDir() {
				continue
			}
			r := recorded{id: e.Name(), sandboxer: sandboxer, dir: n.dir(sandboxer, e.Name())}
			if r.Recorded, r.err = sandbox.Look(r.dir); !errdefs.IsNotFound(r.err) { // just being made or removed
				all = append(all, r)
			}
		}
	}
	return all, nil
}

// find returns the pod that somebody means: by its id or the beginning of it, by
// its name, or by namespace/name.
func find(all []recorded, pod string) (recorded, error) {
	for _, matches := range []func(recorded) bool{
		func(r recorded) bool { return r.id == pod },
		func(r recorded) bool { return r.name() == pod || r.namespace()+"/"+r.name() == pod },
		func(r recorded) bool { return strings.HasPrefix(r.id, pod) },
	} {
		found := slices.DeleteFunc(slices.Clone(all), func(r recorded) bool { return !matches(r) })
		if len(found) == 1 {
			return found[0], nil
		}
		if len(found) > 1 {
			ids := make([]string, len(found))
			for i, r := range found {
				ids[i] = r.id
			}
			return recorded{}, fmt.Errorf("pod %q can be %s: name one by its id: %w", pod, strings.Join(ids, ", "), errdefs.ErrInvalidArgument)
		}
	}
	return recorded{}, fmt.Errorf("pod %q: %w", pod, errdefs.ErrNotFound)
}

// Machine returns the virtual machine of a pod, which is named by its id, the
// beginning of that, its name, or namespace/name. The daemon is asked only about
// what is none of ours, to say so.
func (n *Node) Machine(ctx context.Context, pod string) (vmm.Record, error) {
	if pod == "" {
		return vmm.Record{}, fmt.Errorf("no pod is named: %w", errdefs.ErrInvalidArgument)
	}
	all, err := n.records()
	if err != nil {
		return vmm.Record{}, err
	}
	r, err := find(all, pod)
	switch {
	case errdefs.IsNotFound(err):
		return vmm.Record{}, n.stranger(ctx, pod, err)
	case err != nil:
		return vmm.Record{}, err
	case r.sandboxer != "vmm":
		return vmm.Record{}, noMachine(pod, r.sandboxer)
	case r.err != nil:
		return vmm.Record{}, fmt.Errorf("pod %s: %w", pod, r.err)
	case r.Dead:
		return vmm.Record{}, fmt.Errorf("pod %s: it is of before the last reboot: %w", pod, errdefs.ErrFailedPrecondition)
	case len(r.Backend) == 0:
		return vmm.Record{}, fmt.Errorf("pod %s: it is still being made: %w", pod, errdefs.ErrFailedPrecondition)
	}
	m, err := vmm.ReadRecord(r.dir, r.Backend)
	if err != nil {
		return m, fmt.Errorf("pod %s: %w", pod, err)
	}
	return m, nil
}

func noMachine(pod, sandboxer string) error {
	return fmt.Errorf("pod %s: it is no virtual machine but of the sandboxer %s: use crictl exec: %w", pod, sandboxer, errdefs.ErrInvalidArgument)
}

// stranger says of a pod that is none of ours what the daemon knows.
func (n *Node) stranger(ctx context.Context, pod string, none error) error {
	d, err := dial(ctx, n.Address)
	if err != nil {
		return none
	}
	defer d.Close()
	all, err := d.sandboxes(ctx)
	if err != nil {
		log.G(ctx).WithError(err).Debug("the daemon does not list sandboxes")
		return none
	}
	for _, s := range all {
		if s.ID == pod || s.Name == pod || s.PodNamespace+"/"+s.Name == pod || strings.HasPrefix(s.ID, pod) {
			return noMachine(pod, s.Sandboxer)
		}
	}
	return none
}
