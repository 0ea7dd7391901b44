package server

import (
	"context"
	"net"
	"testing"

	v2api "github.com/containerd/containerd/api/runtime/task/v2"
	v3api "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/containerd-kuasar/containerd-kuasar/task/api"
	"github.com/containerd-kuasar/containerd-kuasar/task/wire"
)

// TestMessagesAreContainerds fails when an upgrade of containerd's API changes
// what is on the wire.
func TestMessagesAreContainerds(t *testing.T) {
	ours := wire.File_wire_task_proto.Messages()
	for _, theirs := range []protoreflect.FileDescriptor{v2api.File_runtime_task_v2_shim_proto, v3api.File_runtime_task_v3_shim_proto} {
		methods := theirs.Services().ByName("Task").Methods()
		served := (&Server{}).methods()
		for i := range methods.Len() {
			m := methods.Get(i)
			if served[string(m.Name())] == nil {
				t.Errorf("%s is not served", m.FullName())
			}
			for _, d := range []protoreflect.MessageDescriptor{m.Input(), m.Output()} {
				if d.FullName() != "google.protobuf.Empty" {
					same(t, ours.ByName(d.Name()), d)
				}
			}
		}
		if len(served) != methods.Len() {
			t.Errorf("%d methods are served, %s has %d", len(served), theirs.Path(), methods.Len())
		}
	}
}

func same(t *testing.T, ours, theirs protoreflect.MessageDescriptor) {
	t.Helper()
	if ours == nil {
		t.Errorf("%s is missing", theirs.FullName())
		return
	}
	if ours.Fields().Len() != theirs.Fields().Len() {
		t.Errorf("%s has %d fields", theirs.FullName(), theirs.Fields().Len())
	}
	for i := range theirs.Fields().Len() {
		want := theirs.Fields().Get(i)
		got := ours.Fields().ByNumber(want.Number())
		if got == nil || got.Name() != want.Name() || got.Kind() != want.Kind() || got.Cardinality() != want.Cardinality() {
			t.Errorf("%s is %v", want.FullName(), got)
			continue
		}
		if m := want.Message(); m != nil && got.Message().FullName() != m.FullName() && !m.IsMapEntry() {
			same(t, got.Message(), m)
		}
		if e := want.Enum(); e != nil && got.Enum().FullName() != e.FullName() {
			t.Errorf("%s is a %s", want.FullName(), got.Enum().FullName())
		}
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
