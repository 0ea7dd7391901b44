package bed

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/fsnotify/fsnotify"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/containerd-kuasar/containerd-kuasar/test/images"
)

// serial makes names of pods and containers unique.
var serial atomic.Int64

// Pod is a pod that runs in the bed.
type Pod struct {
	ID     string
	Config *runtime.PodSandboxConfig

	bed *Bed
}

// PodConfig returns the configuration of a pod as kubelet would make it, with
// a name of its own.
func (b *Bed) PodConfig() *runtime.PodSandboxConfig {
	name := "pod-" + strconv.FormatInt(serial.Add(1), 10)
	return &runtime.PodSandboxConfig{
		Metadata:     &runtime.PodSandboxMetadata{Name: name, Uid: name, Namespace: "default"},
		Hostname:     name,
		LogDirectory: filepath.Join(b.Dir, "logs", name),
		Linux: &runtime.LinuxPodSandboxConfig{
			CgroupParent: parent(name),
			SecurityContext: &runtime.LinuxSandboxSecurityContext{
				NamespaceOptions: &runtime.NamespaceOption{Pid: runtime.NamespaceMode_CONTAINER},
			},
		},
	}
}

// RunPod runs a pod of a handler. A change, if not nil, is made to its
// configuration first.
func (b *Bed) RunPod(ctx context.Context, handler string, change func(*runtime.PodSandboxConfig)) (*Pod, error) {
	config := b.PodConfig()
	if change != nil {
		change(config)
	}
	response, err := b.Runtime.RunPodSandbox(ctx, &runtime.RunPodSandboxRequest{Config: config, RuntimeHandler: handler})
	if err != nil {
		return nil, fmt.Errorf("run pod of %s: %w", handler, err)
	}
	return &Pod{response.PodSandboxId, config, b}, nil
}

// templateTime is how long a template may take: it boots, with low priority.
var templateTime = Patience(2 * time.Minute)

// Templated runs and removes a pod of VMMClone, which boots, and returns when there
// is a template that the next ones are cloned from.
func (b *Bed) Templated(ctx context.Context) error {
	return b.awaits(ctx, VMMClone, "template made")
}

// Pooled runs and removes a pod of VMMPool, and returns when a machine waits for
// the next one.
func (b *Bed) Pooled(ctx context.Context) error {
	return b.awaits(ctx, VMMPool, PoolFilled)
}

// PoolFilled is in the daemon's log when a machine waits.
const PoolFilled = "machine made for the pool"

// awaits runs a pod until something is in the log.
func (b *Bed) awaits(ctx context.Context, handler, text string) error {
	before := b.Mark()
	p, err := b.RunPod(ctx, handler, nil)
	if err != nil {
		return err
	}
	soon, cancel := context.WithTimeout(ctx, templateTime)
	defer cancel()
	_, err = b.AwaitLog(soon, before, text)
	return errors.Join(err, p.Remove(ctx))
}

// Status is what CRI says of the pod.
func (p *Pod) Status(ctx context.Context) (*runtime.PodSandboxStatus, error) {
	response, err := p.bed.Runtime.PodSandboxStatus(ctx, &runtime.PodSandboxStatusRequest{PodSandboxId: p.ID})
	if err != nil {
		return nil, err
	}
	return response.Status, nil
}

// Stop stops the pod and its containers.
func (p *Pod) Stop(ctx context.Context) error {
	_, err := p.bed.Runtime.StopPodSandbox(ctx, &runtime.StopPodSandboxRequest{PodSandboxId: p.ID})
	return err
}

// Remove stops and removes the pod and its containers.
func (p *Pod) Remove(ctx context.Context) error {
	if err := p.Stop(ctx); err != nil {
		return err
	}
	_, err := p.bed.Runtime.RemovePodSandbox(ctx, &runtime.RemovePodSandboxRequest{PodSandboxId: p.ID})
	return err
}

// Container is a container of a pod.
type Container struct {
	ID     string
	Config *runtime.ContainerConfig
	Pod    *Pod
}

// Create creates a container that sleeps, or what a change of its
// configuration makes of it.
func (p *Pod) Create(ctx context.Context, change func(*runtime.ContainerConfig)) (*Container, error) {
	name := "container-" + strconv.FormatInt(serial.Add(1), 10)
	config := &runtime.ContainerConfig{
		Metadata: &runtime.ContainerMetadata{Name: name},
		Image:    &runtime.ImageSpec{Image: images.Busybox},
		Command:  []string{"sleep", "100000"},
		LogPath:  name + ".log",
		Linux: &runtime.LinuxContainerConfig{
			SecurityContext: &runtime.LinuxContainerSecurityContext{
				NamespaceOptions: p.Config.GetLinux().GetSecurityContext().GetNamespaceOptions(),
			},
		},
	}
	if change != nil {
		change(config)
	}
	response, err := p.bed.Runtime.CreateContainer(ctx, &runtime.CreateContainerRequest{
		PodSandboxId: p.ID, Config: config, SandboxConfig: p.Config,
	})
	if err != nil {
		return nil, fmt.Errorf("create container: %w", err)
	}
	return &Container{response.ContainerId, config, p}, nil
}

// Run creates and starts a container.
func (p *Pod) Run(ctx context.Context, change func(*runtime.ContainerConfig)) (*Container, error) {
	c, err := p.Create(ctx, change)
	if err != nil {
		return nil, err
	}
	return c, c.Start(ctx)
}

// Script returns a change that makes a container run a shell script.
func Script(script string) func(*runtime.ContainerConfig) {
	return func(c *runtime.ContainerConfig) { c.Command = []string{"sh", "-c", script} }
}

// Start starts the container.
func (c *Container) Start(ctx context.Context) error {
	_, err := c.Pod.bed.Runtime.StartContainer(ctx, &runtime.StartContainerRequest{ContainerId: c.ID})
	if err != nil {
		return fmt.Errorf("start container: %w", err)
	}
	return nil
}

// Stop stops the container, by force after a grace period in seconds.
func (c *Container) Stop(ctx context.Context, grace int64) error {
	_, err := c.Pod.bed.Runtime.StopContainer(ctx, &runtime.StopContainerRequest{ContainerId: c.ID, Timeout: grace})
	return err
}

// Remove removes the container.
func (c *Container) Remove(ctx context.Context) error {
	_, err := c.Pod.bed.Runtime.RemoveContainer(ctx, &runtime.RemoveContainerRequest{ContainerId: c.ID})
	return err
}

// Status is what CRI says of the container.
func (c *Container) Status(ctx context.Context) (*runtime.ContainerStatus, error) {
	response, err := c.Pod.bed.Runtime.ContainerStatus(ctx, &runtime.ContainerStatusRequest{ContainerId: c.ID})
	if err != nil {
		return nil, err
	}
	return response.Status, nil
}

// Exec runs a shell script in the container to its end.
func (c *Container) Exec(ctx context.Context, script string) (*runtime.ExecSyncResponse, error) {
	return c.Pod.bed.Runtime.ExecSync(ctx, &runtime.ExecSyncRequest{ContainerId: c.ID, Cmd: []string{"sh", "-c", script}})
}

// AwaitExit waits until CRI knows that the container has exited.
func (c *Container) AwaitExit(ctx context.Context) (*runtime.ContainerStatus, error) {
	client, err := c.Pod.bed.Client()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(namespaces.WithNamespace(ctx, Namespace))
	defer cancel()
	container, err := client.LoadContainer(ctx, c.ID)
	if err != nil {
		return nil, fmt.Errorf("wait for container %s: %w", c.ID, err)
	}
	events, err := c.Pod.bed.Runtime.GetContainerEvents(ctx, &runtime.GetEventsRequest{})
	if err != nil {
		return nil, fmt.Errorf("wait for container %s: %w", c.ID, err)
	}
	// The task's end comes first, and CRI's event after it: subscribed before
	// the task is waited for, the event cannot be missed.
	if task, err := container.Task(ctx, nil); err == nil {
		exited, err := task.Wait(ctx)
		if err != nil {
			return nil, fmt.Errorf("wait for container %s: %w", c.ID, err)
		}
		<-exited
	}
	for {
		status, err := c.Status(ctx)
		if err != nil {
			return nil, err
		}
		if status.State == runtime.ContainerState_CONTAINER_EXITED {
			return status, nil
		}
		if _, err := events.Recv(); err != nil {
			return nil, fmt.Errorf("wait for container %s: %w", c.ID, err)
		}
	}
}

// LogPath is where CRI writes the container's output.
func (c *Container) LogPath() string {
	return filepath.Join(c.Pod.Config.LogDirectory, c.Config.LogPath)
}

// Log returns what the container wrote to a stream, "stdout" or "stderr", as
// its log has it.
func (c *Container) Log(stream string) (string, error) {
	raw, err := os.ReadFile(c.LogPath())
	if err != nil {
		return "", err
	}
	return ParseLog(string(raw), stream)
}

// ParseLog takes one stream's text from a log in CRI's format.
func ParseLog(log, stream string) (string, error) {
	var text strings.Builder
	for line := range strings.Lines(log) {
		fields := strings.SplitN(line, " ", 4)
		if len(fields) != 4 || (fields[2] != "F" && fields[2] != "P") {
			return "", fmt.Errorf("parse log: malformed line %q", line)
		}
		if fields[1] != stream {
			continue
		}
		entry := fields[3]
		if fields[2] == "P" {
			entry = strings.TrimSuffix(entry, "\n")
		}
		text.WriteString(entry)
	}
	return text.String(), nil
}

// AwaitLog waits until the container's log has a text on stdout.
func (c *Container) AwaitLog(ctx context.Context, text string) error {
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch log: %w", err)
	}
	defer watcher.Close()
	if err := watcher.Add(filepath.Dir(c.LogPath())); err != nil {
		return fmt.Errorf("watch log: %w", err)
	}
	for {
		log, err := c.Log("stdout")
		if err == nil && strings.Contains(log, text) {
			return nil
		}
		select {
		case <-watcher.Events:
		case err := <-watcher.Errors:
			return fmt.Errorf("watch log: %w", err)
		case <-ctx.Done():
			return fmt.Errorf("wait for %q in the log of container %s, which has %q: %w", text, c.ID, log, ctx.Err())
		}
	}
}
