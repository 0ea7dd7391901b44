package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	cgroup1 "github.com/containerd/cgroups/v3/cgroup1/stats"
	cgroup2 "github.com/containerd/cgroups/v3/cgroup2/stats"
	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types/runc/options"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/containerd-kuasar/containerd-kuasar/task/api"
)

func (b *box) tryKill(exec string, sig uint32, all bool) error {
	ctx, cancel := b.ctx()
	defer cancel()
	_, err := b.client.Kill(ctx, &taskapi.KillRequest{ID: b.id, ExecID: exec, Signal: sig, All: all})
	return errgrpc.ToNative(err)
}

func TestKill(t *testing.T) {
	n := newNode(t)
	b := n.newBox("sh", "-c", "trap 'exit 9' TERM; while :; do sleep 0.01; done").run()
	b.exec("e", nil, "sleep", "1000")
	if err := b.tryKill("e", 9, false); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("exec that was not started: %v", err)
	}
	b.startExec("e")
	if err := b.tryKill("e", 15, false); err != nil {
		t.Error(err)
	}
	if got := b.wait("e"); got != 143 {
		t.Errorf("exec's exit status %d", got)
	}
	if err := b.tryKill("e", 15, false); !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), "process already finished") {
		t.Errorf("exec that exited: %v", err)
	}
	if err := b.tryKill("", 1000, false); !errdefs.IsInvalidArgument(err) {
		t.Errorf("no signal: %v", err)
	}
	if err := b.tryKill("none", 9, false); !errdefs.IsNotFound(err) {
		t.Errorf("unknown exec: %v", err)
	}
	b.kill(15)
	if got := b.wait(""); got != 9 {
		t.Errorf("exit status %d", got)
	}
	if err := b.tryKill("", 9, false); !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), "process already finished") {
		t.Errorf("container that exited: %v", err)
	}
	if err := b.tryKill("", 9, true); err != nil {
		t.Errorf("all of a container that exited: %v", err)
	}
}

func TestKillAll(t *testing.T) {
	n := newNode(t)
	b := n.newBox("sleep", "1000").run() // which as pid 1 takes no TERM
	b.exec("e", nil, "sleep", "1000")
	b.startExec("e")
	if err := b.tryKill("", 15, true); err != nil {
		t.Fatal(err)
	}
	if got := b.wait("e"); got != 143 {
		t.Errorf("exec's exit status %d", got)
	}
	b.kill(9)
	if got := b.wait(""); got != 137 {
		t.Errorf("exit status %d", got)
	}
}

// joinHost makes the container live in the worker's pid namespace.
func (b *box) joinHost() {
	b.spec.Linux.Namespaces = slices.DeleteFunc(b.spec.Linux.Namespaces, func(ns specs.LinuxNamespace) bool {
		return ns.Type == specs.PIDNamespace
	})
}

func TestSharedPIDNamespaceEndsWithFirstProcess(t *testing.T) {
	n := newNode(t)
	b := n.newBox("sh", "-c", "sleep 1000 & sleep 1000 & echo up; exit 8")
	b.joinHost()
	b.create()
	b.start()
	if got := b.wait(""); got != 8 {
		t.Errorf("exit status %d", got)
	}
	if got := b.out.String(); got != "up\n" { // ends with the last process
		t.Errorf("output %q", got)
	}
	ctx, cancel := n.ctx()
	defer cancel()
	eventually(t, "the killed ones are reaped", func() bool {
		r, err := n.client.Pids(ctx, &taskapi.PidsRequest{ID: b.id})
		return err == nil && len(r.Processes) == 0
	})
	b.delete("")
	if left := b.leftovers(); left != "" {
		t.Errorf("left: %s", left)
	}
}

func TestExecsExitBeforeContainer(t *testing.T) {
	for _, shared := range []bool{false, true} {
		t.Run("shared="+strconv.FormatBool(shared), func(t *testing.T) {
			n := newNode(t)
			b := n.newBox("sleep", "1000")
			if shared {
				b.joinHost()
			}
			b.run()
			const execs = 10
			for i := range execs {
				id := "e" + itoa(i)
				b.exec(id, nil, "sleep", "1000")
				b.startExec(id)
			}
			b.kill(9)
			b.awaitExit("")
			b.events.mu.Lock()
			defer b.events.mu.Unlock()
			var exits []*api.Event
			for _, e := range b.events.list {
				if e.GetExit() != nil {
					exits = append(exits, e)
				}
			}
			if len(exits) != execs+1 || exits[execs].GetExit().ExecId != "" {
				t.Errorf("exits: %v", exits)
			}
			for _, e := range exits {
				if e.GetExit().Exit.Status != 137 {
					t.Errorf("exit: %v", e)
				}
			}
		})
	}
}

func TestPids(t *testing.T) {
	n := newNode(t)
	b := n.newBox("sleep", "1000")
	pid := b.create()
	b.exec("e", nil, "sleep", "1000")
	exec := b.startExec("e")
	b.start()
	ctx, cancel := n.ctx()
	defer cancel()
	r, err := n.client.Pids(ctx, &taskapi.PidsRequest{ID: b.id})
	if err != nil {
		t.Fatal(err)
	}
	got := map[uint32]string{}
	for _, p := range r.Processes {
		got[p.Pid] = ""
		if p.Info != nil {
			v, err := typeurl.UnmarshalAny(p.Info)
			if err != nil {
				t.Fatal(err)
			}
			got[p.Pid] = v.(*options.ProcessDetails).ExecID
		}
	}
	if len(got) != 2 || got[exec] != "e" || got[pid] != "" {
		t.Errorf("pids %v, not %d and %d", got, pid, exec)
	}
	c, err := n.client.Connect(ctx, &taskapi.ConnectRequest{ID: b.id})
	if err != nil || c.TaskPid != pid || c.ShimPid != uint32(n.cmd.Process.Pid) {
		t.Errorf("%v, %v", c, err)
	}
}

func TestPause(t *testing.T) {
	n := newNode(t)
	b := n.newBox("sleep", "1000").run()
	b.exec("e", nil, "sleep", "1000")
	b.startExec("e")
	ctx, cancel := n.ctx()
	defer cancel()
	if _, err := n.client.Resume(ctx, &taskapi.ResumeRequest{ID: b.id}); !errdefs.IsFailedPrecondition(errgrpc.ToNative(err)) {
		t.Errorf("resume of a running container: %v", err)
	}
	if _, err := n.client.Pause(ctx, &taskapi.PauseRequest{ID: b.id}); err != nil {
		t.Fatal(err)
	}
	for _, exec := range []string{"", "e"} {
		if s := b.state(exec); s.Status != tasktypes.Status_PAUSED {
			t.Errorf("%q is %v", exec, s.Status)
		}
	}
	// A new worker sees it too.
	n.restart()
	if s := b.state(""); s.Status != tasktypes.Status_PAUSED {
		t.Errorf("restored as %v", s.Status)
	}
	if _, err := n.client.Exec(ctx, &taskapi.ExecProcessRequest{ID: b.id, ExecID: "x", Spec: &anypb.Any{Value: []byte("{}")}}); !errdefs.IsFailedPrecondition(errgrpc.ToNative(err)) {
		t.Errorf("exec in a paused container: %v", err)
	}
	if _, err := n.client.Delete(ctx, &taskapi.DeleteRequest{ID: b.id}); !errdefs.IsFailedPrecondition(errgrpc.ToNative(err)) {
		t.Errorf("delete of a paused container: %v", err)
	}
	if _, err := n.client.Resume(ctx, &taskapi.ResumeRequest{ID: b.id}); err != nil {
		t.Fatal(err)
	}
	if s := b.state(""); s.Status != tasktypes.Status_RUNNING {
		t.Errorf("resumed: %v", s.Status)
	}
	if _, err := n.client.Pause(ctx, &taskapi.PauseRequest{ID: b.id}); err != nil {
		t.Fatal(err)
	}
	b.kill(9) // reaches a paused one
	if got := b.wait(""); got != 137 {
		t.Errorf("exit status %d", got)
	}
	b.delete("")
	if left := b.leftovers(); left != "" {
		t.Errorf("left: %s", left)
	}
}

// cgroupFile reads a file of the container's cgroup, whichever version.
func (b *box) cgroupFile(v1, v2 string) string {
	b.Helper()
	path := filepath.Join("/sys/fs/cgroup", cgroupParent, b.id, v2)
	if dir, file, ok := strings.Cut(v1, "/"); ok && !unified() {
		path = filepath.Join("/sys/fs/cgroup", dir, cgroupParent, b.id, file)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		b.Fatal(err)
	}
	return strings.TrimSpace(string(data))
}

func unified() bool {
	_, err := os.Stat("/sys/fs/cgroup/cgroup.controllers")
	return err == nil
}

func TestUpdate(t *testing.T) {
	n := newNode(t)
	b := n.newBox("sleep", "1000")
	limit, quota, period := int64(64<<20), int64(50000), uint64(100000)
	b.spec.Linux.Resources.Memory = &specs.LinuxMemory{Limit: &limit}
	b.spec.Linux.Resources.CPU = &specs.LinuxCPU{Quota: &quota, Period: &period}
	b.run()
	larger, pids := int64(96<<20), int64(77)
	data, err := json.Marshal(&specs.LinuxResources{
		Memory: &specs.LinuxMemory{Limit: &larger},
		Pids:   &specs.LinuxPids{Limit: &pids},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := n.ctx()
	defer cancel()
	if _, err := n.client.Update(ctx, &taskapi.UpdateTaskRequest{ID: b.id, Resources: &anypb.Any{Value: data}}); err != nil {
		t.Fatal(err)
	}
	if got := b.cgroupFile("memory/memory.limit_in_bytes", "memory.max"); got != strconv.FormatInt(larger, 10) {
		t.Errorf("memory limit %s", got)
	}
	if got := b.cgroupFile("pids/pids.max", "pids.max"); got != "77" {
		t.Errorf("limit of processes %s", got)
	}
	if got := b.cgroupFile("cpu/cpu.cfs_quota_us", "cpu.max"); !strings.HasPrefix(got, "50000") {
		t.Errorf("quota %s", got)
	}
	if _, err := n.client.Update(ctx, &taskapi.UpdateTaskRequest{ID: b.id, Resources: &anypb.Any{Value: []byte("{")}}); !errdefs.IsInvalidArgument(errgrpc.ToNative(err)) {
		t.Errorf("broken resources: %v", err)
	}
}

func TestStats(t *testing.T) {
	n := newNode(t)
	b := n.newBox("sh", "-c", "yes | head -c 1000000 > /dev/null; sleep 1000")
	b.run()
	read := func() (pids, memory uint64) {
		t.Helper()
		ctx, cancel := n.ctx()
		defer cancel()
		r, err := n.client.Stats(ctx, &taskapi.StatsRequest{ID: b.id})
		if err != nil {
			t.Fatal(err)
		}
		m, err := typeurl.UnmarshalAny(r.Stats)
		if err != nil {
			t.Fatal(err)
		}
		switch m := m.(type) {
		case *cgroup1.Metrics:
			return m.Pids.Current, m.Memory.Usage.Usage
		case *cgroup2.Metrics:
			return m.Pids.Current, m.Memory.Usage
		}
		t.Fatalf("metrics are a %T", m)
		return 0, 0
	}
	if pids, memory := read(); pids == 0 || memory == 0 {
		t.Errorf("%d processes, %d bytes", pids, memory)
	}
	b.kill(9)
	b.wait("")
	if pids, _ := read(); pids != 0 { // until Delete
		t.Errorf("%d processes after the exit", pids)
	}
}

func TestOOM(t *testing.T) {
	n := newNode(t)
	b := n.newBox("sh", "-c", "dd if=/dev/zero of=/dev/null bs=200M count=1")
	limit := int64(20 << 20)
	b.spec.Linux.Resources.Memory = &specs.LinuxMemory{Limit: &limit, Swap: &limit}
	b.spec.Process.Args = []string{"dd", "if=/dev/zero", "of=/dev/null", "bs=200M", "count=1"}
	b.run()
	if e := b.awaitExit(""); e.Exit.Status != 137 {
		t.Errorf("exit %v", e)
	}
	b.events.mu.Lock()
	defer b.events.mu.Unlock()
	for _, e := range b.events.list { // told before the exit
		if e.ContainerId == b.id && e.GetOom() != nil {
			return
		}
	}
	t.Errorf("no OOM among %v", b.events.list)
}

func TestStates(t *testing.T) {
	n := newNode(t)
	b := n.newBox("sleep", "1000")
	b.create()
	ctx, cancel := n.ctx()
	defer cancel()
	refused := func(what string, err error, is func(error) bool) {
		t.Helper()
		if !is(errgrpc.ToNative(err)) {
			t.Errorf("%s: %v", what, err)
		}
	}
	_, err := b.tryCreate()
	refused("create twice", err, errdefs.IsAlreadyExists)
	_, err = n.client.Pause(ctx, &taskapi.PauseRequest{ID: b.id})
	refused("pause of a created container", err, errdefs.IsFailedPrecondition)
	b.start()
	_, err = n.client.Start(ctx, &taskapi.StartRequest{ID: b.id})
	refused("start twice", err, errdefs.IsFailedPrecondition)
	_, err = n.client.Delete(ctx, &taskapi.DeleteRequest{ID: b.id})
	refused("delete of a running container", err, errdefs.IsFailedPrecondition)
	b.exec("e", nil, "sleep", "1000")
	_, err = n.client.Exec(ctx, &taskapi.ExecProcessRequest{ID: b.id, ExecID: "e", Spec: &anypb.Any{Value: []byte("{}")}})
	refused("same exec twice", err, errdefs.IsAlreadyExists)
	b.kill(9)
	b.wait("")
	_, err = n.client.Start(ctx, &taskapi.StartRequest{ID: b.id, ExecID: "e"})
	refused("exec in a stopped container", err, errdefs.IsFailedPrecondition)
	_, err = n.client.Exec(ctx, &taskapi.ExecProcessRequest{ID: b.id, ExecID: "f", Spec: &anypb.Any{Value: []byte("{}")}})
	refused("new exec in a stopped container", err, errdefs.IsFailedPrecondition)
	_, err = n.client.Start(ctx, &taskapi.StartRequest{ID: b.id})
	refused("start of a stopped container", err, errdefs.IsFailedPrecondition)
	b.delete("") // with the exec that never ran
	_, err = n.client.Wait(ctx, &taskapi.WaitRequest{ID: b.id, ExecID: "e"})
	refused("wait in a deleted container", err, errdefs.IsNotFound)
}

func TestDeleteOfCreatedKillsIt(t *testing.T) {
	n := newNode(t)
	b := n.newBox("sleep", "1000")
	pid := b.create()
	if d := b.delete(""); d.ExitStatus != 137 || d.Pid != pid {
		t.Errorf("%v", d)
	}
	if err := unix.Kill(int(pid), 0); err != unix.ESRCH {
		t.Errorf("process %d: %v", pid, err)
	}
	if left := b.leftovers(); left != "" {
		t.Errorf("left: %s", left)
	}
}
