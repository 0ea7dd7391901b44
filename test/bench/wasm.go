package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/pkg/namespaces"
	"golang.org/x/sync/errgroup"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/containerd-kuasar/containerd-kuasar/task/wasm/engine"
	"github.com/containerd-kuasar/containerd-kuasar/test/bed"
	"github.com/containerd-kuasar/containerd-kuasar/test/images"
)

// The benchmarks of Wasm compare pods of each engine with stock ones that run
// the same program, built for the host.

// modules pulls the images that have them and returns the engines that there
// are here.
func (b *bench) modules(ctx context.Context) ([]string, error) {
	for _, image := range []string{images.Probe, images.Native} {
		if err := b.Pull(ctx, image); err != nil {
			return nil, err
		}
	}
	return slices.DeleteFunc(slices.Clone(engine.Names), func(name string) bool {
		missing := !bed.HasEngine(name)
		if missing {
			fmt.Printf("no %s here: it is left out (hack/wasmedge)\n", name)
		}
		return missing
	}), nil
}

// program runs a program of test/modules on an engine, or natively in a stock
// pod if that is empty.
func program(engine, name string, args ...string) shape {
	s := shape{handler: bed.Wasm, engine: engine, image: images.Probe, hostNetwork: true, command: append([]string{"/" + name + ".wasm"}, args...)}
	if engine == "" {
		s.handler, s.image, s.command[0] = bed.Stock, images.Native, "/"+name
	}
	return s
}

// wasmStart: a pod with a container that says something and waits, on a node
// that has the module compiled.
func wasmStart(ctx context.Context, b *bench) error {
	engines, err := b.modules(ctx)
	if err != nil {
		return err
	}
	took := map[string]*starts{}
	sides := append([]string{""}, engines...)
	for _, side := range sides {
		took[side] = &starts{}
	}
	for i := range b.n + 1 { // the first compiles
		for j := range sides {
			side := sides[(i+j)%len(sides)]
			p, t, err := b.start(ctx, program(side, "probe", "sleep"))
			if err != nil {
				return fmt.Errorf("%s: %w", side, err)
			}
			if i > 0 {
				took[side].add(p, t)
			}
			if err := b.remove(ctx, p); err != nil {
				return err
			}
		}
	}
	for _, name := range engines {
		b.report.starts("Wasm start, "+name, took[name], took[""], 0.2)
	}
	return nil
}

// wasmMemory: what a container has for itself, of several that run the same
// program.
func wasmMemory(ctx context.Context, b *bench) error {
	engines, err := b.modules(ctx)
	if err != nil {
		return err
	}
	values := map[string][]float64{}
	for _, side := range append([]string{""}, engines...) {
		var pods []*pod
		for range 5 {
			p, _, err := b.start(ctx, program(side, "probe", "sleep"))
			if err != nil {
				return fmt.Errorf("%s: %w", side, err)
			}
			pods = append(pods, p)
		}
		if err := b.settled(pods); err != nil {
			return err
		}
		for _, p := range pods {
			n, err := b.private(ctx, p)
			if err != nil {
				return err
			}
			values[side] = append(values[side], n)
		}
		if err := b.removeAll(ctx, pods); err != nil {
			return err
		}
	}
	for _, name := range engines {
		b.report.compare("Wasm private memory of a process, "+name, "KB", values[name], values[""], 0)
	}
	return nil
}

// settled waits until each container has said that it sleeps.
func (b *bench) settled(pods []*pod) error {
	for _, p := range pods {
		c := &bed.Container{ID: p.container, Config: &runtime.ContainerConfig{LogPath: p.config.Metadata.Name + ".log"}, Pod: &bed.Pod{Config: p.config}}
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		err := c.AwaitLog(ctx, "sleeping")
		cancel()
		if err != nil {
			return err
		}
	}
	return nil
}

// private is the memory of a container's process that no other has, in KB.
func (b *bench) private(ctx context.Context, p *pod) (float64, error) {
	client, err := b.Client()
	if err != nil {
		return 0, err
	}
	ctx = namespaces.WithNamespace(ctx, bed.Namespace)
	container, err := client.LoadContainer(ctx, p.container)
	if err != nil {
		return 0, err
	}
	task, err := container.Task(ctx, nil)
	if err != nil {
		return 0, err
	}
	f, err := os.Open("/proc/" + strconv.Itoa(int(task.Pid())) + "/smaps_rollup")
	if err != nil {
		return 0, err
	}
	defer f.Close()
	sum := 0
	for s := bufio.NewScanner(f); s.Scan(); {
		if strings.HasPrefix(s.Text(), "Private_Clean:") || strings.HasPrefix(s.Text(), "Private_Dirty:") {
			n, err := strconv.Atoi(strings.Fields(s.Text())[1])
			if err != nil {
				return 0, err
			}
			sum += n
		}
	}
	return float64(sum), nil
}

// wasmDense: as many containers at once as a node has pods, and how long one
// more takes.
func wasmDense(ctx context.Context, b *bench) error {
	engines, err := b.modules(ctx)
	if err != nil {
		return err
	}
	for _, name := range engines {
		var pods []*pod
		begin := time.Now()
		for range dense / parallel {
			more := make([]*pod, parallel)
			var g errgroup.Group
			for i := range more {
				g.Go(func() (err error) {
					more[i], _, err = b.start(ctx, program(name, "probe", "sleep"))
					return err
				})
			}
			if err := g.Wait(); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			pods = append(pods, more...)
		}
		took := time.Since(begin)
		if err := b.settled(pods); err != nil {
			return err
		}
		var private []float64
		for _, p := range pods {
			n, err := b.private(ctx, p)
			if err != nil {
				return err
			}
			private = append(private, n)
		}
		b.report.note("%d Wasm containers, %s: started in %.1f s, private memory of their processes %.1f MB", len(pods), name, took.Seconds(), sum(private)/1024)
		if err := b.removeAll(ctx, pods); err != nil {
			return err
		}
	}
	return nil
}

func sum(values []float64) (total float64) {
	for _, v := range values {
		total += v
	}
	return total
}

// scale is how much compute computes: a second or so natively.
const scale = "8"

// wasmCompute: how long a program takes that only computes, from its start to
// its end.
func wasmCompute(ctx context.Context, b *bench) error {
	engines, err := b.modules(ctx)
	if err != nil {
		return err
	}
	values := map[string][]time.Duration{}
	for range max(3, b.n/6) {
		for _, side := range append([]string{""}, engines...) {
			took, err := b.toEnd(ctx, program(side, "compute", scale))
			if err != nil {
				return fmt.Errorf("%s: %w", side, err)
			}
			values[side] = append(values[side], took)
		}
	}
	for _, name := range engines {
		b.report.compare("Wasm arithmetic, "+name, "ms", milliseconds(values[name]), milliseconds(values[""]), 0)
	}
	return nil
}

// toEnd runs a container to its end and returns how long it ran.
func (b *bench) toEnd(ctx context.Context, s shape) (time.Duration, error) {
	events, err := b.Runtime.GetContainerEvents(ctx, &runtime.GetEventsRequest{})
	if err != nil {
		return 0, err
	}
	p, _, err := b.start(ctx, s)
	if err != nil {
		return 0, err
	}
	for {
		event, err := events.Recv()
		if err != nil {
			return 0, err
		}
		if event.ContainerId == p.container && event.ContainerEventType == runtime.ContainerEventType_CONTAINER_STOPPED_EVENT {
			break
		}
	}
	status, err := b.Runtime.ContainerStatus(ctx, &runtime.ContainerStatusRequest{ContainerId: p.container})
	if err != nil {
		return 0, err
	}
	if status.Status.ExitCode != 0 {
		return 0, fmt.Errorf("exit code %d", status.Status.ExitCode)
	}
	return time.Duration(status.Status.FinishedAt - status.Status.StartedAt), b.remove(ctx, p)
}
