package ctl

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"strings"
	"time"

	tasks "github.com/containerd/containerd/api/services/tasks/v1"
	task "github.com/containerd/containerd/api/types/task"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/typeurl/v2"
)

// answerTime bounds what the daemon may take to be connected to.
const answerTime = 2 * time.Second

// daemon is a connection to a node's daemon.
type daemon struct{ *containerd.Client }

func dial(ctx context.Context, address string) (daemon, error) {
	// gRPC would try again for some time, and not say why.
	var d net.Dialer
	probe, err := d.DialContext(ctx, "unix", address)
	if err != nil {
		return daemon{}, fmt.Errorf("reach the daemon: %w", err)
	}
	probe.Close()
	c, err := containerd.New(address, containerd.WithTimeout(answerTime))
	if err != nil {
		return daemon{}, fmt.Errorf("reach the daemon at %s: %w", address, err)
	}
	return daemon{c}, nil
}

// each calls f in every namespace there is.
func (d daemon) each(ctx context.Context, f func(ctx context.Context, namespace string) error) error {
	names, err := d.NamespaceService().List(ctx)
	if err != nil {
		return fmt.Errorf("list namespaces: %w", err)
	}
	for _, name := range names {
		if err := f(namespaces.WithNamespace(ctx, name), name); err != nil {
			return fmt.Errorf("namespace %s: %w", name, err)
		}
	}
	return nil
}

// sandboxes lists those that the daemon knows, those that are not ours too,
// without their containers.
func (d daemon) sandboxes(ctx context.Context) ([]Sandbox, error) {
	var all []Sandbox
	err := d.each(ctx, func(ctx context.Context, namespace string) error {
		list, err := d.SandboxStore().List(ctx)
		if err != nil {
			return fmt.Errorf("list sandboxes: %w", err)
		}
		for _, s := range list {
			one := Sandbox{ID: s.ID, Namespace: namespace, Sandboxer: s.Sandboxer, CreatedAt: s.CreatedAt}
			one.Name, one.PodNamespace = name(s.Extensions)
			all = append(all, one)
		}
		return nil
	})
	return all, err
}

// name is in the CRI plugin's own record of a sandbox or container, which is an
// extension of containerd's (versionedMetadata of internal/cri/store).
func name(extensions map[string]typeurl.Any) (name, namespace string) {
	var r struct {
		Metadata struct {
			Config struct {
				Metadata struct{ Name, Namespace string } `json:"metadata"`
			}
		}
	}
	for _, e := range extensions {
		if json.Unmarshal(e.GetValue(), &r) == nil && r.Metadata.Config.Metadata.Name != "" {
			return r.Metadata.Config.Metadata.Name, r.Metadata.Config.Metadata.Namespace
		}
	}
	return "", ""
}

// status completes s with what its controller says now.
func (d daemon) status(ctx context.Context, s *Sandbox) error {
	status, err := d.SandboxController(s.Sandboxer).Status(namespaces.WithNamespace(ctx, s.Namespace), s.ID, true)
	if err != nil {
		return err
	}
	s.State, s.Pid = strings.ToLower(strings.TrimPrefix(status.State, "SANDBOX_")), status.Pid
	s.Reason = status.Info["reason"]
	var info struct {
		Status string `json:"processStatus"`
	}
	if ours(s.Sandboxer) && json.Unmarshal([]byte(status.Info["info"]), &info) == nil && info.Status != "" {
		s.State = info.Status // in the framework's own words
	}
	return nil
}

// containers lists those of all sandboxes, by the sandbox's namespace and id.
func (d daemon) containers(ctx context.Context) (map[[2]string][]Container, error) {
	all := map[[2]string][]Container{}
	err := d.each(ctx, func(ctx context.Context, namespace string) error {
		list, err := d.ContainerService().List(ctx)
		if err != nil {
			return fmt.Errorf("list containers: %w", err)
		}
		states, err := d.states(ctx)
		if err != nil {
			return err
		}
		for _, c := range list {
			if c.SandboxID == "" || c.Labels["io.cri-containerd.kind"] == "sandbox" { // the stock runtime's pause
				continue
			}
			k := [2]string{namespace, c.SandboxID}
			of, _ := name(c.Extensions)
			all[k] = append(all[k], Container{ID: c.ID, Name: of, Image: c.Image, State: states[c.ID]})
		}
		return nil
	})
	return all, err
}

// states are those of a namespace's tasks.
func (d daemon) states(ctx context.Context) (map[string]string, error) {
	list, err := d.TaskService().List(ctx, &tasks.ListTasksRequest{})
	if err != nil {
		return nil, fmt.Errorf("list tasks: %w", err)
	}
	all := map[string]string{}
	for _, t := range list.Tasks {
		all[t.ID] = strings.ToLower(task.Status_name[int32(t.Status)])
	}
	return all, nil
}
