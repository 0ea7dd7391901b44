package tasks

import (
	"errors"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/runtime"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	logtest "github.com/sirupsen/logrus/hooks/test"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/containerd-kuasar/containerd-kuasar/task/api"
)

// newGuestRig is a rig whose sandbox is a virtual machine.
func newGuestRig(t testing.TB) *rig {
	t.Helper()
	return newRigOf(t, true)
}

// silent makes a task without stdio: nothing of it is carried.
func (r *rig) silent(id string) *Task {
	r.Helper()
	opts := createOpts(plainSpec)
	opts.IO = runtime.IO{}
	c, err := r.Create(r.ctx, id, opts)
	r.must(err)
	r.must(c.Start(r.ctx))
	return c.(*Task)
}

func exited(id string, status uint32, at *timestamppb.Timestamp) *api.Event {
	return &api.Event{Namespace: space, ContainerId: id, Event: &api.Event_Exit{
		Exit: &api.ProcessExit{Exit: &api.Exit{Status: status, ExitedAt: at}},
	}}
}

// A guest tells nothing of another pod's tasks, neither by events nor by what it
// lists, and they do not vanish because it does not list them.
func TestGuestSpeaksOfItsOwnPod(t *testing.T) {
	r := newGuestRig(t)
	c := r.silent("c")
	other := &follower{pod: "other"}
	r.dispatch(other, exited("c", 9, timestamppb.Now()))
	r.dispatch(other, &api.Event{Namespace: space, ContainerId: "c", Event: &api.Event_Oom{Oom: &api.OutOfMemory{}}})
	r.reconcile(c.at(), other, []*api.Process{{
		Namespace: space, ContainerId: "c", Status: api.Status_STATUS_STOPPED, Exit: &api.Exit{Status: 9},
	}})
	r.reconcile(c.at(), other, nil)
	if s := r.state(c); s.Status != runtime.RunningStatus {
		t.Errorf("another pod's guest made the task %+v", s)
	}
	own := &follower{pod: podID}
	r.dispatch(own, exited("c", 3, timestamppb.New(exitTime)))
	if e := r.wait(c); e.Status != 3 || !e.Timestamp.Equal(exitTime) {
		t.Errorf("exit %+v", e)
	}
	r.log.want("create c", "start c", "exit c 3")
}

// The stdio of execs is what a client gave, whatever a guest says that it is,
// and of execs that no client made there are none.
func TestGuestNamesNoFiles(t *testing.T) {
	r := newGuestRig(t)
	c := r.silent("c")
	p, err := c.Exec(r.ctx, "e", runtime.ExecOpts{Spec: &anypb.Any{}})
	r.must(err)
	r.must(p.Start(r.ctx))
	r.crash(func() {
		r.agent.mu.Lock()
		defer r.agent.mu.Unlock()
		r.agent.procs[procKey{key{space, "c"}, "e"}].Stdout = "/etc/passwd"
		for _, id := range []string{"x", "../y", "z"} {
			r.agent.add(procKey{key{space, "c"}, id}, api.Status_STATUS_RUNNING, 7).Stdin = "/etc/shadow"
		}
	})
	task := r.get("c").(*Task)
	e := task.get("e")
	if e == nil {
		t.Fatal("the exec is gone")
	}
	if s := r.state(e); s.Stdout != "" || s.Stdin != "" {
		t.Errorf("the exec's stdio is %+v", s)
	}
	if n := len(task.processes()); n != 2 {
		t.Errorf("%d processes, want 2", n)
	}
}

// An exec that is about to start is not in the way of itself when its agent comes
// back.
func TestExecStartsWhenAgentComesBack(t *testing.T) {
	r := newGuestRig(t)
	c := r.silent("c")
	p, err := c.Exec(r.ctx, "e", runtime.ExecOpts{Spec: &anypb.Any{}})
	r.must(err)
	c.restream(r.ctx)
	r.must(p.Start(r.ctx))
}

// Whatever time a guest gives, the exit is recorded and the task can be removed.
func TestGuestTellsAnyTime(t *testing.T) {
	for name, at := range map[string]*timestamppb.Timestamp{
		"none": nil, "late": {Seconds: math.MaxInt64}, "early": {Seconds: math.MinInt64}, "odd": {Nanos: -1},
	} {
		t.Run(name, func(t *testing.T) {
			r := newGuestRig(t)
			c := r.silent("c")
			began := time.Now()
			r.dispatch(&follower{pod: podID}, exited("c", 3, at))
			if e := r.wait(c); e.Timestamp.Before(began) || e.Timestamp.After(time.Now()) {
				t.Errorf("exit %+v", e)
			}
			r.agent.exit("c", "", 3)
			if _, err := r.Delete(r.ctx, "c"); err != nil {
				t.Error(err)
			}
			r.clean("c")
		})
	}
}

// A guest that says all the time that it is out of memory is not heard each time.
func TestGuestOutOfMemory(t *testing.T) {
	r := newGuestRig(t)
	r.silent("c")
	for range 1000 {
		r.dispatch(&follower{pod: podID}, &api.Event{Namespace: space, ContainerId: "c", Event: &api.Event_Oom{Oom: &api.OutOfMemory{}}})
	}
	r.log.mu.Lock()
	defer r.log.mu.Unlock()
	if n := len(r.log.lines); n > 10 {
		t.Errorf("%d events", n)
	}
}

// What a guest says of exits is logged once, however often and of whatever
// process it says it, and no more than a line.
func TestGuestDoesNotFillTheLog(t *testing.T) {
	r := newGuestRig(t)
	r.silent("c")
	lines := logtest.NewGlobal()
	log.L.Logger.AddHook(lines)
	for pid := range uint32(1000) {
		e := exited("c", 3, timestamppb.New(exitTime))
		e.GetExit().Pid = pid
		e.GetExit().Exit.Unknown = strings.Repeat("x", 1<<20)
		r.dispatch(&follower{pod: podID}, e)
	}
	var size int
	for _, l := range lines.AllEntries() {
		size += len(l.Message)
	}
	if size == 0 || size > 1000 {
		t.Errorf("%d bytes are logged", size)
	}
}

// Nothing of a guest's can be written to the host's files.
func TestGuestHasNoCheckpoint(t *testing.T) {
	r := newGuestRig(t)
	if err := r.silent("c").Checkpoint(r.ctx, "/there", nil); !errdefs.IsNotImplemented(err) {
		t.Errorf("checkpoint: %v", err)
	}
}

// A container that is to be killed ends, with its pod if its guest does not do it.
func TestKillWithoutAnswer(t *testing.T) {
	r := newGuestRig(t)
	c := r.silent("c")
	r.agent.failing("kill", errdefs.ErrUnavailable)
	if err := c.Kill(r.ctx, uint32(unix.SIGTERM), false); !errdefs.IsUnavailable(err) {
		t.Errorf("SIGTERM: %v", err)
	}
	if c.over() {
		t.Fatal("a pod ended for want of an answer to SIGTERM")
	}
	if err := c.Kill(r.ctx, uint32(unix.SIGKILL), false); err != nil {
		t.Error(err)
	}
	if e := r.wait(c); e.Status != killedStatus {
		t.Errorf("exit %+v", e)
	}
}

// Stats of a guest that stalls do not take the others' time.
func TestStatsWithoutAnswer(t *testing.T) {
	r := newGuestRig(t)
	c := r.silent("c")
	asked, release := make(chan struct{}, 8), make(chan struct{})
	r.agent.on("stats", func() { asked <- struct{}{}; <-release })
	defer close(release)
	began := time.Now()
	for range 4 {
		if _, err := c.Stats(r.ctx); !errors.Is(err, errStalled) {
			t.Errorf("stats: %v", err)
		}
	}
	if took := time.Since(began); took > 2*statsTime || len(asked) != 1 {
		t.Errorf("four times took %v, and the guest was asked %d times", took, len(asked))
	}
}

// FuzzGuest is for all that a guest may say of tasks: an event, and a list of
// processes. It changes nothing of another pod's, brings no processes of its own,
// and what it says can be recorded and removed.
func FuzzGuest(f *testing.F) {
	marshal := func(m proto.Message) []byte {
		b, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		return b
	}
	seen := &api.ListResponse{Processes: []*api.Process{
		{Namespace: space, ContainerId: "c", ExecId: "new", Pid: 1, Status: api.Status_STATUS_RUNNING, Stdin: "/etc/shadow"},
		{Namespace: space, ContainerId: "c", Status: 77, Pid: 1},
		{Namespace: space, ContainerId: "other", Status: api.Status_STATUS_STOPPED},
	}}
	f.Add(marshal(exited("c", 1, timestamppb.Now())), marshal(seen))
	f.Add(marshal(exited("other", 1, &timestamppb.Timestamp{Seconds: math.MaxInt64})), marshal(&api.ListResponse{}))
	f.Add(marshal(&api.Event{Namespace: space, ContainerId: "c", Event: &api.Event_Exit{}}), []byte{})
	f.Add(marshal(&api.Event{Namespace: space, ContainerId: "c", Event: &api.Event_Oom{}}), marshal(&api.ListResponse{Processes: []*api.Process{{}}}))
	f.Fuzz(func(t *testing.T, event, list []byte) {
		var e api.Event
		var l api.ListResponse
		if proto.Unmarshal(event, &e) != nil || proto.Unmarshal(list, &l) != nil {
			return
		}
		r := newGuestRig(t)
		c := r.silent("c")
		other := r.silent("other")
		other.pod = "elsewhere" // as if it were another's
		guest := &follower{pod: podID}
		r.dispatch(guest, &e)
		r.reconcile(c.at(), guest, l.Processes)
		if s := r.state(other); s.Status != runtime.RunningStatus || len(other.processes()) != 1 {
			t.Errorf("the other pod's task is %+v", s)
		}
		if n := len(c.processes()); n != 1 {
			t.Errorf("%d processes", n)
		}
		if s := r.state(c); s.Status != runtime.RunningStatus && s.Status != runtime.StoppedStatus && s.Status != runtime.CreatedStatus && s.Status != runtime.PausedStatus {
			t.Errorf("the task is %+v", s)
		}
		r.agent.exit("c", "", 3)
		r.wait(c)
		if _, err := r.Delete(r.ctx, "c"); err != nil {
			t.Error(err)
		}
		r.clean("c")
		other.pod = podID
	})
}
