package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/containerd-kuasar/containerd-kuasar/test/bed"
)

// The benchmarks of virtual machines compare their pods with stock ones, which
// have no machine, and with a machine that has nothing but a kernel.

// vmStart: a pod with a container, against stock's and against the same machine
// with no pod around it: from the start of QEMU to the first instruction of PID
// 1.
func vmStart(ctx context.Context, b *bench) error {
	m, err := newBare(b)
	if err != nil {
		return err
	}
	defer m.close()
	var bare []time.Duration
	took := map[string]*starts{b.ours: {}, bed.Stock: {}}
	_, err = b.inTurn(func(handler string) (time.Duration, error) {
		p, t, err := b.start(ctx, shape{handler: handler})
		if err != nil {
			return 0, err
		}
		took[handler].add(p, t)
		if err := b.remove(ctx, p); err != nil || handler == bed.Stock {
			return t, err
		}
		boot, err := m.boot(ctx)
		bare = append(bare, boot)
		return t, err
	})
	if err != nil {
		return err
	}
	b.report.starts("VM start, pod network", took[b.ours], took[bed.Stock], 0)
	b.report.durations("VM RunPodSandbox, against the bare boot", took[b.ours].calls[0], bare, 1.15)
	b.report.durations("VM pod and container, against the bare boot", took[b.ours].whole, bare, 0)
	return nil
}

func isMachine(handler string) bool {
	return handler == bed.VMM || handler == bed.VMMClone || handler == bed.VMMPool
}

// vmTemplate: a pod whose machine is a clone, against one whose machine boots.
func vmTemplate(ctx context.Context, b *bench) error {
	if err := b.Templated(ctx); err != nil {
		return err
	}
	booted := bed.VMM
	took := map[string]*starts{b.ours: {}, booted: {}}
	for i := range b.n {
		for j := range 2 {
			handler := []string{b.ours, booted}[(i+j)%2]
			p, t, err := b.start(ctx, shape{handler: handler})
			if err != nil {
				return fmt.Errorf("%s: %w", handler, err)
			}
			took[handler].add(p, t)
			if err := b.remove(ctx, p); err != nil {
				return err
			}
		}
	}
	b.report.starts("VM start, cloned, against booted", took[b.ours], took[booted], 0.25)
	return nil
}

// vmPool: a pod whose machine waited for it, against stock's, one whose machine
// is a clone, and one whose machine boots.
func vmPool(ctx context.Context, b *bench) error {
	if err := b.Templated(ctx); err != nil {
		return err
	}
	if err := b.Pooled(ctx); err != nil {
		return err
	}
	handlers := []string{b.ours, bed.Stock, bed.VMMClone, bed.VMM}
	took := map[string]*starts{}
	for _, handler := range handlers {
		took[handler] = &starts{}
	}
	for i := range b.n {
		for j := range handlers {
			handler := handlers[(i+j)%len(handlers)]
			before := b.Mark()
			p, t, err := b.start(ctx, shape{handler: handler})
			if err != nil {
				return fmt.Errorf("%s: %w", handler, err)
			}
			took[handler].add(p, t)
			if err := b.remove(ctx, p); err != nil {
				return err
			}
			if handler == b.ours {
				if _, err := b.AwaitLog(ctx, before, bed.PoolFilled); err != nil {
					return err
				}
			}
		}
	}
	b.report.starts("VM start, from the pool", took[b.ours], took[bed.Stock], 1.2)
	b.report.starts("VM start, cloned", took[bed.VMMClone], took[bed.Stock], 2)
	b.report.starts("VM start, booted", took[bed.VMM], took[bed.Stock], 0)
	b.report.starts("VM start, from the pool, against booted", took[b.ours], took[bed.VMM], 0)
	return nil
}

// vmParallel is fewer than in benchParallel: on two processors, guests whose
// instructions are emulated wait for each other.
func vmParallel(ctx context.Context, b *bench) error { return b.atOnce(ctx, 10, 0) }

// fileSize is what a container reads and writes, in bytes.
const fileSize = 64 << 20

// vmFiles: a container writes a file of its root file system to the disk, and
// reads one that its page cache does not have.
func vmFiles(ctx context.Context, b *bench) error {
	n := b.n
	b.n = max(3, n/6)
	defer func() { b.n = n }()
	pods := map[string]*pod{}
	for _, handler := range b.handlers() {
		p, _, err := b.start(ctx, shape{handler: handler})
		if err != nil {
			return err
		}
		pods[handler] = p
	}
	for _, test := range []struct{ name, prepare, measure string }{
		{"write", "rm -f /file", fmt.Sprintf("dd if=/dev/zero of=/file bs=1M count=%d conv=fsync", fileSize>>20)},
		// Direct reads go past the cache of the guest and of the host alike.
		{"read", "true", "dd if=/file of=/dev/null bs=1M iflag=direct"},
	} {
		rates := map[string][]float64{}
		_, err := b.inTurn(func(handler string) (time.Duration, error) {
			if _, err := b.sh(ctx, pods[handler], test.prepare); err != nil {
				return 0, err
			}
			took, err := b.sh(ctx, pods[handler], test.measure)
			rates[handler] = append(rates[handler], fileSize/1e6/took.Seconds())
			return took, err
		})
		if err != nil {
			return err
		}
		b.report.rates("VM root file system, "+test.name, "MB/s", rates[b.ours], rates[bed.Stock], 0)
	}
	return nil
}

// sh runs a command in a pod's container and returns how long that took.
func (b *bench) sh(ctx context.Context, p *pod, command string) (time.Duration, error) {
	begin := time.Now()
	r, err := b.Runtime.ExecSync(ctx, &runtime.ExecSyncRequest{ContainerId: p.container, Cmd: []string{"sh", "-c", command}})
	if err == nil && r.ExitCode != 0 {
		err = fmt.Errorf("%s: exit code %d: %s", command, r.ExitCode, r.Stderr)
	}
	return time.Since(begin), err
}

// machines is how many there are when their memory is read.
const machines = 20

// vmMemory: what a pod costs beside its guest's memory, and the daemon.
func vmMemory(ctx context.Context, b *bench) error {
	var pods []*pod
	more := func(n int) error {
		for range n {
			p, _, err := b.start(ctx, shape{handler: b.ours})
			if err != nil {
				return err
			}
			pods = append(pods, p)
		}
		return nil
	}
	if err := more(1); err != nil { // the daemon still has what pulling images took
		return err
	}
	before, err := managementMemory()
	if err != nil {
		return err
	}
	if err := more(machines - 1); err != nil {
		return err
	}
	after, err := managementMemory()
	if err != nil {
		return err
	}
	b.report.note("VM pods: the daemon and the worker grow by %.0f KB a pod, from 1 to %d (target 100 KB)",
		(after.daemon+after.rest-before.daemon-before.rest)/(machines-1), machines)
	use, err := machineMemory()
	if err != nil {
		return err
	}
	for _, name := range []string{"qemu-system-x86_64", "virtiofsd", "vhost-device-vsock"} {
		b.report.note("VM pods: %s takes %.1f MB a pod (PSS beside the guest's memory)", name, use[name]/1024/machines)
	}
	b.report.note("VM pods: guests take %.1f MB a pod of 128 MB", use["guest"]/1024/machines)
	return b.removeAll(ctx, pods)
}

// machineMemory sums the PSS of the machines' processes by their program, in KB,
// with the guests' memory apart.
func machineMemory() (map[string]float64, error) {
	processes, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	use := map[string]float64{}
	for _, p := range processes {
		args, err := os.ReadFile(filepath.Join(p, "cmdline"))
		if err != nil {
			continue // it has ended
		}
		path, _, _ := strings.Cut(string(args), "\x00")
		maps, err := os.ReadFile(filepath.Join(p, "smaps"))
		if err != nil {
			continue
		}
		guest, rest := split(maps)
		use["guest"] += guest
		use[filepath.Base(path)] += rest
	}
	return use, nil
}

// split sums the PSS of a process's mappings: of a guest's memory, which all of
// a machine's processes map, and of the rest.
func split(smaps []byte) (guest, rest float64) {
	ram := false
	for line := range bytes.Lines(smaps) {
		var n float64
		if _, err := fmt.Sscanf(string(line), "Pss: %f kB", &n); err == nil {
			if ram {
				guest += n
			} else {
				rest += n
			}
			continue
		}
		if key, _, _ := bytes.Cut(line, []byte(" ")); !bytes.HasSuffix(key, []byte(":")) { // a mapping begins
			ram = bytes.Contains(line, []byte("/memfd:memory-backend-memfd"))
		}
	}
	return guest, rest
}

// await reads until it has seen text.
func await(r io.Reader, text string) error {
	var seen []byte
	b := make([]byte, 4096)
	for !bytes.Contains(seen, []byte(text)) {
		n, err := r.Read(b)
		if err != nil {
			return fmt.Errorf("the machine said: %q: %w", seen, err)
		}
		seen = append(seen, b[:n]...)
	}
	return nil
}
