package main

import (
	"cmp"
	"context"
	"fmt"
	"sync/atomic"
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/containerd-kuasar/containerd-kuasar/test/bed"
	"github.com/containerd-kuasar/containerd-kuasar/test/images"
	"github.com/containerd-kuasar/containerd-kuasar/wasm"
)

// handlers are the two that are compared.
func (b *bench) handlers() []string { return []string{b.ours, bed.Stock} }

// title of a comparison that is made of several sandboxers.
func (b *bench) title(format string, args ...any) string {
	name := fmt.Sprintf(format, args...)
	if isMachine(b.ours) {
		name = "VM " + name
	}
	return name
}

// counter makes names of pods unique.
var counter atomic.Int64

// pod is one pod with one container.
type pod struct {
	id, container string
	config        *runtime.PodSandboxConfig
	calls         [3]time.Duration // of RunPodSandbox, CreateContainer, StartContainer
}

// starts are samples of how long starts took, and their calls.
type starts struct {
	whole []time.Duration
	calls [3][]time.Duration
}

func (s *starts) add(p *pod, took time.Duration) {
	s.whole = append(s.whole, took)
	for i, t := range p.calls {
		s.calls[i] = append(s.calls[i], t)
	}
}

// median of the whole in milliseconds.
func (s *starts) median() float64 { return summarize(milliseconds(s.whole)).P50 }

// shape says what a pod is.
type shape struct {
	handler     string
	hostNetwork bool
	image       string   // busybox if empty
	command     []string // sleeps for ever if nil
	engine      string   // of a Wasm pod
}

func (b *bench) config(s shape) *runtime.PodSandboxConfig {
	n := counter.Add(1)
	var annotations map[string]string
	if s.engine != "" {
		annotations = map[string]string{wasm.Annotation: s.engine}
	}
	network, hostname := runtime.NamespaceMode_POD, "bench"
	if s.hostNetwork {
		network, hostname = runtime.NamespaceMode_NODE, "" // the host's
	}
	return &runtime.PodSandboxConfig{
		Metadata:     &runtime.PodSandboxMetadata{Name: fmt.Sprintf("bench-%d", n), Uid: fmt.Sprint(n), Namespace: "bench"},
		Hostname:     hostname,
		LogDirectory: b.Dir,
		Annotations:  annotations,
		Linux: &runtime.LinuxPodSandboxConfig{
			CgroupParent: "/bench",
			SecurityContext: &runtime.LinuxSandboxSecurityContext{
				NamespaceOptions: &runtime.NamespaceOption{Network: network, Pid: runtime.NamespaceMode_CONTAINER},
			},
		},
	}
}

// start runs a pod and its container and returns how long that took.
func (b *bench) start(ctx context.Context, s shape) (*pod, time.Duration, error) {
	p := &pod{config: b.config(s)}
	command := s.command
	if command == nil {
		command = []string{"sleep", "1000000"}
	}
	begin := time.Now()
	sandbox, err := b.Runtime.RunPodSandbox(ctx, &runtime.RunPodSandboxRequest{Config: p.config, RuntimeHandler: s.handler})
	if err != nil {
		return nil, 0, err
	}
	p.id = sandbox.PodSandboxId
	p.calls[0] = time.Since(begin)
	container, err := b.Runtime.CreateContainer(ctx, &runtime.CreateContainerRequest{
		PodSandboxId:  p.id,
		SandboxConfig: p.config,
		Config: &runtime.ContainerConfig{
			Metadata: &runtime.ContainerMetadata{Name: "c"},
			Image:    &runtime.ImageSpec{Image: cmp.Or(s.image, images.Busybox)},
			Command:  command,
			LogPath:  p.config.Metadata.Name + ".log",
			Linux: &runtime.LinuxContainerConfig{SecurityContext: &runtime.LinuxContainerSecurityContext{
				NamespaceOptions: p.config.Linux.SecurityContext.NamespaceOptions,
			}},
		},
	})
	if err != nil {
		return nil, 0, err
	}
	p.container = container.ContainerId
	p.calls[1] = time.Since(begin) - p.calls[0]
	_, err = b.Runtime.StartContainer(ctx, &runtime.StartContainerRequest{ContainerId: p.container})
	took := time.Since(begin)
	p.calls[2] = took - p.calls[1] - p.calls[0]
	return p, took, err
}

// remove kills the container and removes its pod.
func (b *bench) remove(ctx context.Context, p *pod) error {
	if _, err := b.Runtime.StopContainer(ctx, &runtime.StopContainerRequest{ContainerId: p.container}); err != nil {
		return err
	}
	if _, err := b.Runtime.StopPodSandbox(ctx, &runtime.StopPodSandboxRequest{PodSandboxId: p.id}); err != nil {
		return err
	}
	_, err := b.Runtime.RemovePodSandbox(ctx, &runtime.RemovePodSandboxRequest{PodSandboxId: p.id})
	return err
}

// warm pulls the image and starts one pod of each kind, so that what is done
// once (the worker's start, the image's unpacking) is not measured.
func (b *bench) warm(ctx context.Context) error {
	if err := b.Pull(ctx, images.Busybox); err != nil {
		return err
	}
	for _, handler := range []string{bed.Runc, bed.Stock} {
		p, _, err := b.start(ctx, shape{handler: handler})
		if err != nil {
			return err
		}
		if err := b.remove(ctx, p); err != nil {
			return err
		}
	}
	return nil
}
