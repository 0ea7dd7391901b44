package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	apitypes "github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/types/known/anypb"
)

func TestBadInput(t *testing.T) {
	n := newNode(t)
	for name, c := range map[string]struct {
		spoil func(b *box)
		is    func(error) bool
		says  string
	}{
		"bundle is missing":  {func(b *box) { b.req.Bundle = "/nonexistent" }, errdefs.IsFailedPrecondition, "/nonexistent is not an OCI bundle"},
		"bundle is relative": {func(b *box) { b.req.Bundle = "x" }, errdefs.IsInvalidArgument, "absolute"},
		"no process":         {func(b *box) { b.spec.Process = nil }, errdefs.IsInvalidArgument, "no process"},
		"no command":         {func(b *box) { b.spec.Process.Args = nil }, errdefs.IsInvalidArgument, "args"},
		"relative cwd":       {func(b *box) { b.spec.Process.Cwd = "x" }, errdefs.IsInvalidArgument, "cwd"},
		"no root":            {func(b *box) { b.spec.Root = nil }, errdefs.IsInvalidArgument, "root"},
		"rootfs is missing":  {func(b *box) { b.spec.Root.Path = "other" }, errdefs.IsFailedPrecondition, "other is missing"},
		"rootfs mounts":      {func(b *box) { b.req.Rootfs = []*apitypes.Mount{{Type: "bind"}} }, errdefs.IsInvalidArgument, "rootfs"},
		"unknown rlimit":     {func(b *box) { b.spec.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_X"}} }, errdefs.IsInvalidArgument, "RLIMIT_X"},
		"unknown namespace":  {func(b *box) { b.spec.Linux.Namespaces[0].Type = "galaxy" }, errdefs.IsInvalidArgument, "galaxy"},
		"no such program":    {func(b *box) { b.spec.Process.Args = []string{"nothing"} }, nil, `"nothing": executable file not found`},
		"bind of nothing": {func(b *box) {
			b.spec.Mounts = append(b.spec.Mounts, specs.Mount{Destination: "/x", Source: "/nonexistent", Options: []string{"bind"}})
		}, nil, "/nonexistent"},
		"id with a slash":       {func(b *box) { b.req.ID = "a/b" }, errdefs.IsInvalidArgument, "a/b"},
		"id that is a path":     {func(b *box) { b.req.ID = ".." }, errdefs.IsInvalidArgument, ".."},
		"stdout does not exist": {func(b *box) { b.req.Stdout = "/nonexistent/fifo" }, errdefs.IsNotFound, "/nonexistent/fifo"},
		"unknown options":       {func(b *box) { b.req.Options = &anypb.Any{TypeUrl: "some.other.Options"} }, errdefs.IsInvalidArgument, "some.other.Options"},
		"broken options":        {func(b *box) { b.req.Options = &anypb.Any{TypeUrl: "containerd.runc.v1.Options", Value: []byte{0xff}} }, errdefs.IsInvalidArgument, "containerd.runc.v1.Options"},
		"systemd without systemd": {func(b *box) {
			if _, err := os.Stat("/run/systemd/system"); err == nil {
				b.Skip("missing: a host without systemd")
			}
			b.req.Options = anyOf(b, &options.Options{SystemdCgroup: true})
		}, nil, "systemd"},
		"checkpoint is missing": {func(b *box) { b.req.ParentCheckpoint = "x" }, errdefs.IsNotImplemented, "parent checkpoint"},
	} {
		t.Run(name, func(t *testing.T) {
			b := n.newBox("sleep", "1000")
			b.TB = t
			c.spoil(b)
			_, err := b.tryCreate()
			if err != nil && strings.Contains(err.Error(), "\n") {
				t.Errorf("more than one line: %q", err)
			}
			if err = errgrpc.ToNative(err); err == nil || c.is != nil && !c.is(err) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v", err)
			}
			if left := b.leftovers(); left != "" {
				t.Errorf("left: %s", left)
			}
		})
	}
}

func anyOf(t *box, v any) *anypb.Any {
	a, err := typeurl.MarshalAnyToProto(v)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func TestBrokenSpec(t *testing.T) {
	n := newNode(t)
	b := n.newBox("true")
	if err := os.WriteFile(filepath.Join(b.bundle, "config.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := n.ctx()
	defer cancel()
	if _, err := n.client.Create(ctx, b.req); !errdefs.IsInvalidArgument(errgrpc.ToNative(err)) || !strings.Contains(err.Error(), "config.json") {
		t.Errorf("got %v", err)
	}
}

func TestNamespaces(t *testing.T) {
	n := newNode(t)
	b := n.newBox("sleep", "1000").run()
	ctx, cancel := n.ctx()
	defer cancel()
	other := namespaces.WithNamespace(ctx, "moby")
	if _, err := n.client.State(other, &taskapi.StateRequest{ID: b.id}); !errdefs.IsNotFound(errgrpc.ToNative(err)) {
		t.Errorf("state in another namespace: %v", err)
	}
	for _, bad := range []string{"../x", "a/b", "."} {
		if _, err := n.client.State(namespaces.WithNamespace(ctx, bad), &taskapi.StateRequest{ID: b.id}); !errdefs.IsInvalidArgument(errgrpc.ToNative(err)) {
			t.Errorf("state in namespace %q: %v", bad, err)
		}
	}
}

func TestBadExec(t *testing.T) {
	n := newNode(t)
	b := n.newBox("sleep", "1000").run()
	ctx, cancel := n.ctx()
	defer cancel()
	for name, r := range map[string]*taskapi.ExecProcessRequest{
		"no spec":  {ID: b.id, ExecID: "e"},
		"a path":   {ID: b.id, ExecID: "../e", Spec: b.processSpec("true")},
		"no id":    {ID: b.id, Spec: b.processSpec("true")},
		"bad spec": {ID: b.id, ExecID: "e", Spec: &anypb.Any{Value: []byte("[]")}},
	} {
		if _, err := n.client.Exec(ctx, r); !errdefs.IsInvalidArgument(errgrpc.ToNative(err)) {
			t.Errorf("%s: %v", name, err)
		}
	}
	out := b.exec("e", nil, "nothing")
	if _, err := n.client.Start(ctx, &taskapi.StartRequest{ID: b.id, ExecID: "e"}); err == nil || !strings.Contains(err.Error(), `"nothing": executable file not found`) {
		t.Errorf("no such program: %v", err)
	}
	if _, err := n.client.Wait(ctx, &taskapi.WaitRequest{ID: b.id, ExecID: "e"}); err != nil {
		t.Errorf("wait for an exec that did not start: %v", err)
	}
	b.delete("e")
	if got := out.String(); got != "" {
		t.Errorf("output %q", got)
	}
}
