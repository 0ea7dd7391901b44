package server

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/containerd-kuasar/containerd-kuasar/internal/pidfd"
	"github.com/containerd-kuasar/containerd-kuasar/task/api"
	"github.com/containerd-kuasar/containerd-kuasar/task/wire"
)

func (r *rig) status(id, exec string) tasktypes.Status {
	r.Helper()
	s, err := r.State(r.ctx, &wire.StateRequest{Id: id, ExecId: exec})
	if err != nil {
		r.Fatal(err)
	}
	return s.Status
}

// files counts what is on disk below the containers' directory.
func (r *rig) files() (n int) {
	r.Helper()
	dirs, err := filepath.Glob(filepath.Join(r.cfg.Dir, "*", "*", "*"))
	if err != nil {
		r.Fatal(err)
	}
	return len(dirs)
}

func TestLifeLeavesNothing(t *testing.T) {
	r := newRig(t).restore(nil)
	events, end := r.events.subscribe()
	defer end()
	r.create("c", "")
	if got := r.status("c", ""); got != tasktypes.Status_CREATED {
		t.Errorf("created: %v", got)
	}
	r.start("c", "")
	r.exec("c", "e")
	r.start("c", "e")
	r.runtime.exit("c", 1, 4)
	if got := r.wait("c", "e"); got != 4 {
		t.Errorf("exec's exit status %d", got)
	}
	r.runtime.exit("c", 0, 5)
	if got := r.wait("c", ""); got != 5 {
		t.Errorf("exit status %d", got)
	}
	if e := r.next(events); e.GetExit().GetExecId() != "e" || e.Namespace != "ns" {
		t.Errorf("first event: %v", e)
	}
	if e := r.next(events); e.GetExit().GetExit().GetStatus() != 5 {
		t.Errorf("second event: %v", e)
	}
	if _, err := r.Delete(r.ctx, &wire.DeleteRequest{Id: "c"}); err != nil {
		t.Fatal(err)
	}
	if r.files() != 0 || r.stdio.left() != 0 || r.holder.count() != 0 || len(r.containers) != 0 {
		t.Errorf("left: %d files, %d stdio, %d held, %d containers", r.files(), r.stdio.left(), r.holder.count(), len(r.containers))
	}
}

func TestFailedCreateLeavesNothing(t *testing.T) {
	for name, spoil := range map[string]func(r *rig){
		"stdio":   func(r *rig) { r.stdio.fail = errFake },
		"runtime": func(r *rig) { r.runtime.fail["create"] = errFake },
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t).restore(nil)
			spoil(r)
			req := &wire.CreateTaskRequest{Id: "c", Bundle: r.bundle(false)}
			if _, err := r.Create(r.ctx, req); err == nil || !strings.Contains(err.Error(), errFake.Error()) {
				t.Errorf("got %v", err)
			}
			if r.files() != 0 || r.stdio.left() != 0 || r.holder.count() != 0 {
				t.Errorf("left: %d files, %d stdio, %d held", r.files(), r.stdio.left(), r.holder.count())
			}
			r.stdio.fail = nil
			delete(r.runtime.fail, "create")
			r.create("c", "")
		})
	}
}

// TestAdoptFails has the record fail when the process is there.
func TestAdoptFails(t *testing.T) {
	r := newRig(t).restore(nil)
	hang := make(chan struct{})
	r.runtime.hang["create"] = hang
	done := make(chan error)
	go func() {
		_, err := r.Create(r.ctx, &wire.CreateTaskRequest{Id: "c", Bundle: r.bundle(false)})
		done <- err
	}()
	<-r.runtime.told
	if err := os.RemoveAll(filepath.Join(r.cfg.Dir, "ns", "c")); err != nil {
		t.Fatal(err)
	}
	close(hang)
	if err := <-done; err == nil || !strings.Contains(err.Error(), "write record") {
		t.Errorf("got %v", err)
	}
	if r.stdio.left() != 0 || r.holder.count() != 0 || r.runtime.count("delete") != 1 {
		t.Errorf("left: %d stdio, %d held, %d deletes", r.stdio.left(), r.holder.count(), r.runtime.count("delete"))
	}
}

func TestFailedStartCanBeRepeated(t *testing.T) {
	r := newRig(t).restore(nil)
	r.create("c", "")
	r.runtime.fail["start"] = errFake
	if _, err := r.Start(r.ctx, &wire.StartRequest{Id: "c"}); err == nil {
		t.Error("started")
	}
	if got := r.status("c", ""); got != tasktypes.Status_CREATED {
		t.Errorf("after the failure: %v", got)
	}
	delete(r.runtime.fail, "start")
	r.start("c", "")
}

func TestFailedExecIsStopped(t *testing.T) {
	r := newRig(t).restore(nil)
	r.create("c", "")
	r.start("c", "")
	r.exec("c", "e")
	r.runtime.fail["exec"] = errFake
	if _, err := r.Start(r.ctx, &wire.StartRequest{Id: "c", ExecId: "e"}); err == nil {
		t.Error("started")
	}
	if got := r.status("c", "e"); got != tasktypes.Status_STOPPED {
		t.Errorf("after the failure: %v", got)
	}
	if got := r.wait("c", "e"); got != pidfd.UnknownStatus {
		t.Errorf("exit status %d", got)
	}
	// It does not hold up the container's exit.
	r.runtime.exit("c", 0, 1)
	r.wait("c", "")
}

// TestExecsOutputHoldsUpContainersExit: the first process's exit is the last to
// be told even if an exec's output takes its time.
func TestExecsOutputHoldsUpContainersExit(t *testing.T) {
	r := newRig(t).restore(nil)
	drain := make(chan struct{})
	r.stdio.drains["slow"] = drain
	events, end := r.events.subscribe()
	defer end()
	r.create("c", "")
	r.start("c", "")
	r.exec("c", "slow")
	r.start("c", "slow")
	r.exec("c", "quick")
	r.start("c", "quick")
	r.runtime.exit("c", 0, 1)
	r.runtime.exit("c", 1, 2)
	r.runtime.exit("c", 2, 3)
	if e := r.next(events); e.GetExit().GetExecId() != "quick" {
		t.Errorf("first: %v", e)
	}
	select {
	case e := <-events:
		t.Errorf("too early: %v", e)
	default:
	}
	close(drain)
	if e := r.next(events); e.GetExit().GetExecId() != "slow" {
		t.Errorf("second: %v", e)
	}
	if e := r.next(events); e.GetExit().GetExecId() != "" {
		t.Errorf("third: %v", e)
	}
}

func TestSharedNamespaceIsKilled(t *testing.T) {
	r := newRig(t).restore(nil)
	if _, err := r.Create(r.ctx, &wire.CreateTaskRequest{Id: "c", Bundle: r.bundle(true)}); err != nil {
		t.Fatal(err)
	}
	r.start("c", "")
	r.exec("c", "e")
	r.start("c", "e")
	r.runtime.exit("c", 0, 1)
	if got := r.wait("c", "e"); got != killed {
		t.Errorf("exec's exit status %d", got)
	}
	if got := r.wait("c", ""); got != 1 {
		t.Errorf("exit status %d", got)
	}
}

// TestReadersAnswerWhileACallHangs, and others for the process wait no longer
// than their callers.
func TestReadersAnswerWhileACallHangs(t *testing.T) {
	r := newRig(t).restore(nil)
	r.create("c", "")
	hang := make(chan struct{})
	r.runtime.hang["start"] = hang
	done := make(chan error)
	go func() {
		_, err := r.Start(r.ctx, &wire.StartRequest{Id: "c"})
		done <- err
	}()
	<-r.runtime.told
	if got := r.status("c", ""); got != tasktypes.Status_CREATED {
		t.Errorf("status %v", got)
	}
	ctx, cancel := context.WithCancel(r.ctx)
	cancel()
	if _, err := r.Start(ctx, &wire.StartRequest{Id: "c"}); err == nil || !strings.Contains(err.Error(), "under way") {
		t.Errorf("second start: %v", err)
	}
	if _, err := r.Kill(r.ctx, &wire.KillRequest{Id: "c", Signal: 9}); err != nil {
		t.Error(err)
	}
	close(hang)
	if err := <-done; err != nil {
		t.Error(err)
	}
	if got := r.wait("c", ""); got != killed {
		t.Errorf("exit status %d", got)
	}
}

// Who creates a container may die or give up meanwhile. Whoever then removes it
// must not be told that there is none.
func TestDeleteWaitsForCreate(t *testing.T) {
	r := newRig(t).restore(nil)
	hang := make(chan struct{})
	r.runtime.hang["create"] = hang
	bundle := r.bundle(false)
	created := make(chan error)
	go func() {
		_, err := r.Create(r.ctx, &wire.CreateTaskRequest{Id: "c", Bundle: bundle, Stdout: "c"})
		created <- err
	}()
	<-r.runtime.told
	ctx, cancel := context.WithCancel(r.ctx)
	cancel()
	if _, err := r.Delete(ctx, &wire.DeleteRequest{Id: "c"}); err == nil || errdefs.IsNotFound(err) {
		t.Errorf("delete that does not wait: %v", err)
	}
	deleted := make(chan error)
	go func() {
		_, err := r.Delete(r.ctx, &wire.DeleteRequest{Id: "c"})
		deleted <- err
	}()
	close(hang)
	if err := <-created; err != nil {
		t.Error(err)
	}
	if err := <-deleted; err != nil {
		t.Error(err)
	}
	if r.files() != 0 || len(r.containers) != 0 {
		t.Errorf("left: %d files, %d containers", r.files(), len(r.containers))
	}
}

// TestDeleteOfWhatJustExited asks at once when the kernel says that the process
// exited.
func TestDeleteOfWhatJustExited(t *testing.T) {
	r := newRig(t).restore(nil)
	for i := range 50 {
		id := fmt.Sprint("c", i)
		r.create(id, "")
		r.start(id, "")
		p, err := r.Server.process(r.ctx, id, "")
		if err != nil {
			t.Fatal(err)
		}
		fd, err := unix.PidfdOpen(p.get().Pid, 0)
		if err != nil {
			t.Fatal(err)
		}
		r.runtime.exit(id, 0, 7)
		for err = unix.EINTR; err == unix.EINTR; {
			_, err = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, -1)
		}
		if err != nil {
			t.Fatal(err)
		}
		_ = unix.Close(fd)
		if d, err := r.Delete(r.ctx, &wire.DeleteRequest{Id: id}); err != nil || d.ExitStatus != 7 {
			t.Fatalf("delete %s: %v, %v", id, d, err)
		}
	}
}

func TestDeleteCanBeRepeated(t *testing.T) {
	r := newRig(t).restore(nil)
	r.create("c", "")
	r.start("c", "")
	r.runtime.exit("c", 0, 7)
	r.wait("c", "")
	r.runtime.fail["delete"] = errFake
	if _, err := r.Delete(r.ctx, &wire.DeleteRequest{Id: "c"}); err == nil {
		t.Error("deleted")
	}
	delete(r.runtime.fail, "delete")
	d, err := r.Delete(r.ctx, &wire.DeleteRequest{Id: "c"})
	if err != nil || d.ExitStatus != 7 {
		t.Errorf("%v, %v", d, err)
	}
}

func TestWaitEndsWithDelete(t *testing.T) {
	r := newRig(t).restore(nil)
	r.create("c", "")
	r.exec("c", "e")
	waits := make(chan error)
	p, err := r.Server.process(r.ctx, "c", "e")
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		err := p.await(r.ctx)
		if e := p.get().Exit; e != nil {
			t.Errorf("exit %v", e)
		}
		waits <- err
	}()
	if _, err := r.Delete(r.ctx, &wire.DeleteRequest{Id: "c", ExecId: "e"}); err != nil {
		t.Fatal(err)
	}
	if err := <-waits; err != nil {
		t.Error(err)
	}
	if _, err := r.State(r.ctx, &wire.StateRequest{Id: "c", ExecId: "e"}); !errdefs.IsNotFound(err) {
		t.Errorf("state: %v", err)
	}
}

func TestPauseFails(t *testing.T) {
	r := newRig(t).restore(nil)
	r.create("c", "full")
	r.start("c", "")
	r.runtime.fail["pause"] = errFake
	if _, err := r.Pause(r.ctx, &wire.PauseRequest{Id: "c"}); err == nil {
		t.Error("paused")
	}
	if got := r.status("c", ""); got != tasktypes.Status_RUNNING {
		t.Errorf("after the failure: %v", got)
	}
	delete(r.runtime.fail, "pause")
	if _, err := r.Pause(r.ctx, &wire.PauseRequest{Id: "c"}); err != nil {
		t.Fatal(err)
	}
	r.runtime.fail["resume"] = errFake
	if _, err := r.Resume(r.ctx, &wire.ResumeRequest{Id: "c"}); err == nil {
		t.Error("resumed")
	}
	if got := r.status("c", ""); got != tasktypes.Status_PAUSED {
		t.Errorf("after the failure: %v", got)
	}
}

func TestPausingIsSeen(t *testing.T) {
	r := newRig(t).restore(nil)
	r.create("c", "full")
	r.start("c", "")
	r.exec("c", "e")
	r.start("c", "e")
	hang := make(chan struct{})
	r.runtime.hang["pause"] = hang
	done := make(chan error)
	go func() {
		_, err := r.Pause(r.ctx, &wire.PauseRequest{Id: "c"})
		done <- err
	}()
	<-r.runtime.told
	for _, exec := range []string{"", "e"} {
		if got := r.status("c", exec); got != tasktypes.Status_PAUSING {
			t.Errorf("%q: %v", exec, got)
		}
	}
	close(hang)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	// What dies while it is paused is resumed, so that its cgroup can go.
	if err := r.runtime.Signal(r.ctx, Ref{ID: "c"}, 9); err != nil {
		t.Fatal(err)
	}
	r.wait("c", "")
	if r.runtime.count("resume") != 1 {
		t.Error("not resumed")
	}
}

func TestWhatARuntimeLacks(t *testing.T) {
	r := newRig(t).restore(nil)
	r.create("c", "")
	r.start("c", "")
	_, pause := r.Pause(r.ctx, &wire.PauseRequest{Id: "c"})
	_, update := r.Update(r.ctx, &wire.UpdateTaskRequest{Id: "c"})
	_, checkpoint := r.Checkpoint(r.ctx, &wire.CheckpointTaskRequest{Id: "c"})
	_, stats := r.Stats(r.ctx, &wire.StatsRequest{Id: "c"})
	_, restore := r.Create(r.ctx, &wire.CreateTaskRequest{Id: "d", Bundle: r.bundle(false), Checkpoint: "/x"})
	for name, err := range map[string]error{"pause": pause, "update": update, "checkpoint": checkpoint, "stats": stats, "restore": restore} {
		if !errdefs.IsNotImplemented(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if got := r.status("c", ""); got != tasktypes.Status_RUNNING {
		t.Errorf("afterwards: %v", got)
	}
}

func TestRestoredFromCheckpointAtStart(t *testing.T) {
	r := newRig(t).restore(nil)
	if _, err := r.Create(r.ctx, &wire.CreateTaskRequest{Id: "c", Bundle: r.bundle(false), Checkpoint: "/image", Options: &anypb.Any{TypeUrl: "full"}}); err != nil {
		t.Fatal(err)
	}
	if r.runtime.count("create") != 0 || r.status("c", "") != tasktypes.Status_CREATED {
		t.Error("made before its start")
	}
	r.start("c", "")
	if r.runtime.count("restore") != 1 || r.status("c", "") != tasktypes.Status_RUNNING {
		t.Error("not restored")
	}
	r.runtime.exit("c", 0, 3)
	if got := r.wait("c", ""); got != 3 {
		t.Errorf("exit status %d", got)
	}
	// One that was never started goes without a process.
	if _, err := r.Create(r.ctx, &wire.CreateTaskRequest{Id: "d", Bundle: r.bundle(false), Checkpoint: "/image", Options: &anypb.Any{TypeUrl: "full"}}); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Delete(r.ctx, &wire.DeleteRequest{Id: "d"}); err != nil {
		t.Error(err)
	}
}

func TestOOM(t *testing.T) {
	r := newRig(t).restore(nil)
	events, end := r.events.subscribe()
	defer end()
	r.create("c", "")
	r.OOM("ns/c")
	r.OOM("ns/unknown")
	if e := r.next(events); e.GetOom() == nil || e.ContainerId != "c" || e.Namespace != "ns" {
		t.Errorf("got %v", e)
	}
}

func TestCallsWaitForRestore(t *testing.T) {
	r := newRig(t)
	ctx, cancel := context.WithCancel(r.ctx)
	cancel()
	if _, err := r.State(ctx, &wire.StateRequest{Id: "c"}); !errdefs.IsUnavailable(err) {
		t.Errorf("state: %v", err)
	}
	if _, err := r.List(ctx, &api.ListRequest{}); !errdefs.IsUnavailable(err) {
		t.Errorf("list: %v", err)
	}
	if _, err := r.Info(ctx, &api.InfoRequest{}); err != nil {
		t.Errorf("info: %v", err)
	}
}
