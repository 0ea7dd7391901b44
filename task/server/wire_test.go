package server

import (
	"context"
	"net"
	"strings"
	"testing"

	v2api "github.com/containerd/containerd/api/runtime/task/v2"
	v3api "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/containerd-kuasar/containerd-kuasar/task/api"
)

// TestVersionsAreTheSameOnTheWire fails when an upgrade of containerd's API
// makes them differ: then version 3 needs its own messages.
func TestVersionsAreTheSameOnTheWire(t *testing.T) {
	text := func(f protoreflect.FileDescriptor, name string) string {
		d := protodesc.ToFileDescriptorProto(f)
		d.Name, d.Options = nil, nil
		return strings.ReplaceAll(prototext.MarshalOptions{Multiline: true}.Format(d), name, "containerd.task")
	}
	two := text(v2api.File_runtime_task_v2_shim_proto, "containerd.task.v2")
	three := text(v3api.File_runtime_task_v3_shim_proto, "containerd.task.v3")
	// prototext is unstable on purpose, in its spaces only.
	if strings.Join(strings.Fields(two), " ") != strings.Join(strings.Fields(three), " ") {
		t.Error("task API versions 2 and 3 differ")
	}
}

func TestNamespaceHeader(t *testing.T) {
	if namespaceHeader != namespaces.TTRPCHeader {
		t.Errorf("containerd uses %s", namespaces.TTRPCHeader)
	}
}

// dial serves r on one end of a connection.
func (r *rig) dial() *ttrpc.Client {
	r.Helper()
	t, err := ttrpc.NewServer(ttrpc.WithUnaryServerInterceptor(Interceptor))
	if err != nil {
		r.Fatal(err)
	}
	r.Register(t)
	path := r.TempDir() + "/s"
	l, err := net.Listen("unix", path)
	if err != nil {
		r.Fatal(err)
	}
	go t.Serve(context.Background(), l)
	conn, err := net.Dial("unix", path)
	if err != nil {
		r.Fatal(err)
	}
	c := ttrpc.NewClient(conn)
	r.Cleanup(func() { c.Close(); t.Close() })
	return c
}

func TestBothVersionsAreServed(t *testing.T) {
	r := newRig(t).restore(nil)
	c := r.dial()
	ctx := namespaces.WithNamespace(context.Background(), "ns")
	created, err := v3api.NewTTRPCTaskClient(c).Create(ctx, &v3api.CreateTaskRequest{ID: "c", Bundle: r.bundle(false)})
	if err != nil {
		t.Fatal(err)
	}
	s, err := v2api.NewTTRPCTaskClient(c).State(ctx, &v2api.StateRequest{ID: "c"})
	if err != nil || s.Pid != created.Pid {
		t.Errorf("%v, %v", s, err)
	}
	_, err = v2api.NewTTRPCTaskClient(c).State(ctx, &v2api.StateRequest{ID: "d"})
	if !errdefs.IsNotFound(errgrpc.ToNative(err)) {
		t.Errorf("unknown container: %v", err)
	}
}

func TestPanicIsOneCallsError(t *testing.T) {
	r := newRig(t).restore(nil)
	c := v3api.NewTTRPCTaskClient(r.dial())
	ctx := namespaces.WithNamespace(context.Background(), "ns")
	r.cfg.Runtimes["bad"] = nil
	r.create("c", "")
	r.containers[key{"ns", "c"}].runtime = nil
	if _, err := c.Pids(ctx, &v3api.PidsRequest{ID: "c"}); !errdefs.IsInternal(errgrpc.ToNative(err)) {
		t.Errorf("got %v", err)
	}
	r.containers[key{"ns", "c"}].runtime = r.runtime
	if _, err := c.State(ctx, &v3api.StateRequest{ID: "c"}); err != nil {
		t.Error(err)
	}
}

func TestSlowSubscriberIsTold(t *testing.T) {
	var e events
	slow, end := e.subscribe()
	defer end()
	for range queue + 1 {
		e.publish(&api.Event{})
	}
	quick, end2 := e.subscribe()
	e.publish(&api.Event{ContainerId: "c"})
	if got := <-quick; got.ContainerId != "c" {
		t.Errorf("got %v", got)
	}
	n := 0
	for range slow {
		n++
	}
	if n != queue {
		t.Errorf("%d events before the end", n)
	}
	end2()
	if len(e.subs) != 0 {
		t.Errorf("%d subscribers are left", len(e.subs))
	}
}
