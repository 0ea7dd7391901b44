package vmmtest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/containerd-kuasar/containerd-kuasar/sandbox"
	"github.com/containerd-kuasar/containerd-kuasar/task/api"
	"github.com/containerd-kuasar/containerd-kuasar/vmm"
)

// PlugCPUs implements vmm.Resizer.
func (m machine) PlugCPUs(_ context.Context, cpus uint32) error {
	if cpus < 1 || cpus > m.config.MaxCPUs {
		return fmt.Errorf("%d processors, it has 1 to %d: %w", cpus, m.config.MaxCPUs, errdefs.ErrOutOfRange)
	}
	return nil
}

// ResizeMemory implements vmm.Resizer. It keeps what it started with.
func (m machine) ResizeMemory(_ context.Context, want uint64) (has uint64, err error) {
	base := filepath.Join(filepath.Dir(m.path), "base")
	b, err := os.ReadFile(base)
	if errors.Is(err, fs.ErrNotExist) {
		b = strconv.AppendUint(nil, m.config.Memory, 10)
		err = os.WriteFile(base, b, 0o600)
	}
	if err != nil {
		return 0, err
	}
	least, err := strconv.ParseUint(string(b), 10, 64)
	if err != nil {
		return 0, err
	}
	if want > max(least, m.config.MaxMemory) {
		return 0, fmt.Errorf("%d bytes of memory: %w", want, errdefs.ErrOutOfRange)
	}
	return max(want, least), nil
}

func (setter) Resize(context.Context, *api.ResizeRequest) (*api.ResizeResponse, error) {
	return &api.ResizeResponse{}, nil
}

const mib = 1 << 20

// resizable lets machines grow.
func (b *bench) resizable() {
	b.s.Options.MaxVCPUs, b.s.Options.MaxMemory = 3, b.s.Options.Memory+512*mib
	b.s.Options.VCPUs, b.s.Options.Debug = 1, true
	b.daemon()
}

// update resizes the pod. Limits are of whole processors, and in MiB.
func (b *bench) update(cpus, limit int64) error {
	return b.box.(sandbox.Updater).Update(b.ctx, sandbox.Resources{Resources: &runtime.LinuxContainerResources{
		CpuQuota: cpus * 100_000, CpuPeriod: 100_000, MemoryLimitInBytes: limit * mib,
	}})
}

// has says what is recorded, and what the guest sees unless it is a fake.
func (b *bench) has(cpus uint32, memory uint64) {
	b.Helper()
	var s struct {
		CPUs   uint32
		Memory uint64
		Resize any
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.must(json.Unmarshal(b.saved, &s))
	if s.CPUs != cpus || s.Memory != memory || s.Resize != nil {
		b.Errorf("recorded: %d processors and %d MiB, resized: %v; want %d and %d MiB", s.CPUs, s.Memory/mib, s.Resize, cpus, memory/mib)
	}
	if _, fake := b.s.Driver.(Fake); fake {
		return
	}
	r, err := vmm.ReadRecord(b.spec.Dir, b.saved)
	b.must(err)
	var text strings.Builder
	b.must(r.Run(b.ctx, []string{"cat", "/proc/meminfo"}, &text))
	var total uint64
	_, err = fmt.Sscanf(text.String(), "MemTotal: %d kB", &total)
	b.must(err)
	total <<= 10
	// The kernel keeps some of it for itself.
	if total > memory || total < memory-memory/8-80*mib {
		b.Errorf("the guest has %d MiB, and should have %d", total/mib, memory/mib)
	}
}

func resizes(t *testing.T, b *bench) {
	b.resizable()
	b.start()
	b.resized(t)
}

func resizesClone(t *testing.T, b *bench) {
	if b.cloner == nil {
		t.Skip("the driver has no Templater")
	}
	b.resizable()
	b.templated()
	b.start()
	b.cloned(1)
	b.resized(t)
}

// resized grows and shrinks, also after a restart.
func (b *bench) resized(t *testing.T) {
	if _, ok := b.spy.vm.(vmm.Resizer); !ok {
		t.Skip("the driver has no Resizer")
	}
	start, overhead := b.s.Options.Memory, b.s.Options.Overhead
	more := int64((start+256*mib-overhead)/mib) + 128
	b.must(b.update(0, 0)) // no limit is no change
	b.has(1, start)
	b.must(b.update(2, more))
	b.has(2, uint64(more)*mib+overhead)
	b.restore()
	b.must(b.update(3, 0))
	b.has(3, uint64(more)*mib+overhead)
	for _, err := range []error{b.update(4, 0), b.update(0, more+1024)} {
		if !errdefs.IsOutOfRange(err) {
			t.Errorf("beyond what it has: %v", err)
		}
	}
	b.must(b.update(3, more-128))
	b.has(3, uint64(more-128)*mib+overhead)
	b.must(b.update(1, 1)) // never less than it started with
	b.has(1, start)
	b.must(b.update(2, more))
	b.has(2, uint64(more)*mib+overhead)
	b.answers()
}
