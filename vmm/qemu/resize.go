package qemu

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/containerd/errdefs"
	"github.com/digitalocean/go-qemu/qmp"

	"github.com/containerd-kuasar/containerd-kuasar/vmm"
)

// size is of a machine.
type size struct {
	cpus   uint32
	memory uint64 // bytes
}

const (
	// guestTime is how long a guest may take to use more memory, or to give
	// some back. It tries again by itself what it could not do.
	guestTime = 15 * time.Second

	// memoryBlock is what Linux adds memory in, in bytes: the last, incomplete
	// one of a device it would not use.
	memoryBlock = 128 << 20

	// What memory is plugged as, below QEMU's /machine/peripheral.
	memoryDevice  = "memory"
	memoryBackend = "mem-more"
)

// processors is the value of -smp.
func processors(c vmm.Config) string {
	n := strconv.FormatUint(uint64(c.CPUs), 10)
	if c.MaxCPUs > c.CPUs {
		n += ",maxcpus=" + strconv.FormatUint(uint64(c.MaxCPUs), 10)
	}
	return n
}

// memory is the value of -m.
func memory(c vmm.Config) string {
	if c.MaxMemory <= c.Memory {
		return mebibytes(c.Memory)
	}
	return mebibytes(c.Memory) + ",maxmem=" + mebibytes(c.Memory+room(c.Memory, c.MaxMemory))
}

// room is the size of the device of a machine that starts with some memory.
func room(base, most uint64) uint64 {
	if most <= base {
		return 0
	}
	return (most - base + memoryBlock - 1) / memoryBlock * memoryBlock
}

// processor is one that QEMU has, or a place for one.
type processor struct {
	Driver string `json:"type"`
	Props  place  `json:"props"`
	Path   string `json:"qom-path"` // empty where there is none
}

// place of a processor. QEMU counts in an order of its own.
type place struct {
	Node   *int `json:"node-id,omitempty"`
	Socket *int `json:"socket-id,omitempty"`
	Die    *int `json:"die-id,omitempty"`
	Core   *int `json:"core-id,omitempty"`
	Thread *int `json:"thread-id,omitempty"`
}

func (p place) numbers() []*int { return []*int{p.Socket, p.Die, p.Core, p.Thread} }

func (p place) compare(q place) int {
	return slices.CompareFunc(p.numbers(), q.numbers(), func(a, b *int) int {
		return cmp.Compare(number(a), number(b))
	})
}

func number(n *int) int {
	if n == nil {
		return 0
	}
	return *n
}

// plug is the argument of device_add for one more.
func (p processor) plug() table {
	t := table{"driver": p.Driver}
	id := "cpu"
	for i, n := range p.Props.numbers() {
		if n != nil {
			t[[]string{"socket-id", "die-id", "core-id", "thread-id"}[i]] = *n
		}
		id += "-" + strconv.Itoa(number(n))
	}
	if p.Props.Node != nil {
		t["node-id"] = *p.Props.Node
	}
	t["id"] = id
	return t
}

// PlugCPUs implements vmm.Resizer. An emulating QEMU 7.2 ends when
// a processor is plugged after another one was removed: so none ever is.
func (m *machine) PlugCPUs(ctx context.Context, cpus uint32) error {
	return m.do(ctx, fmt.Sprintf("plug processors up to %d", cpus), func(s *session) error {
		var all []processor
		if err := s.run(ctx, "query-hotpluggable-cpus", nil, &all); err != nil {
			return err
		}
		if cpus < 1 || uint64(cpus) > uint64(len(all)) {
			return fmt.Errorf("it has 1 to %d: %w", len(all), errdefs.ErrOutOfRange)
		}
		slices.SortFunc(all, func(a, b processor) int { return a.Props.compare(b.Props) })
		for i, p := range all {
			if p.Path == "" && i < int(cpus) {
				if err := s.run(ctx, "device_add", p.plug(), nil); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

// ResizeMemory implements vmm.Resizer: by a virtio-mem device, which is plugged
// when there is to be more memory for the first time. It takes a slot.
func (m *machine) ResizeMemory(ctx context.Context, want uint64) (has uint64, err error) {
	const what = "change the machine's memory"
	soon, cancel := context.WithTimeout(ctx, guestTime)
	defer cancel()
	err = m.do(soon, what, func(s *session) error {
		return s.resize(soon, want, m.most.memory, func(d table) error { return s.plug(soon, m.slots, d) })
	})
	if err != nil && (soon.Err() == nil || ctx.Err() != nil) {
		return 0, err
	}
	// Where the guest needs longer, what it has is what there is to say.
	err = m.do(ctx, what, func(s *session) error {
		base, more, err := s.memory(ctx)
		has = base + more
		return err
	})
	return has, err
}

// memory is what the machine was started with, and what it has got.
func (s *session) memory(ctx context.Context) (base, more uint64, err error) {
	var m struct {
		Base uint64 `json:"base-memory"`
		More uint64 `json:"plugged-memory"`
	}
	err = s.run(ctx, "query-memory-size-summary", nil, &m)
	return m.Base, m.More, err
}

// resize returns when the guest has what is wanted.
func (s *session) resize(ctx context.Context, want, most uint64, plug func(table) error) error {
	base, more, err := s.memory(ctx)
	if err != nil {
		return err
	}
	if want > max(base, most) {
		return fmt.Errorf("%d bytes, it has at most %d: %w", want, max(base, most), errdefs.ErrOutOfRange)
	}
	want -= min(want, base)
	device := "/machine/peripheral/" + memoryDevice
	var requested uint64
	err = s.run(ctx, "qom-get", table{"path": device, "property": "requested-size"}, &requested)
	switch {
	case err == nil && requested != want:
		err = s.run(ctx, "qom-set", table{"path": device, "property": "requested-size", "value": want}, nil)
	case errdefs.IsNotFound(err) && want == 0:
		return nil
	case errdefs.IsNotFound(err):
		err = s.plugMemory(ctx, want, room(base, most), plug)
	}
	if err != nil || more == want {
		return err
	}
	_, err = s.await(ctx, func(e qmp.Event) bool {
		got, ok := e.Data["size"].(float64)
		return ok && e.Event == "MEMORY_DEVICE_SIZE_CHANGE" && e.Data["id"] == memoryDevice && uint64(got) == want
	})
	return err
}

func (s *session) plugMemory(ctx context.Context, want, room uint64, plug func(table) error) error {
	// One without a device is of a call that was cut off. QEMU has no class of its
	// own for there being none.
	if err := s.run(ctx, "object-del", table{"id": memoryBackend}, nil); err != nil && !errdefs.IsFailedPrecondition(err) {
		return err
	}
	// Shared, as the rest of the machine's.
	object := table{"qom-type": "memory-backend-memfd", "id": memoryBackend, "size": room, "share": true}
	if err := s.run(ctx, "object-add", object, nil); err != nil {
		return err
	}
	err := plug(table{"driver": "virtio-mem-pci", "id": memoryDevice, "memdev": memoryBackend, "requested-size": want})
	if err != nil {
		err = errors.Join(err, s.run(ctx, "object-del", table{"id": memoryBackend}, nil))
	}
	return err
}
