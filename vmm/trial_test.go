package vmm

import (
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/containerd-kuasar/containerd-kuasar/internal/pidfd"
	"github.com/containerd-kuasar/containerd-kuasar/sandbox"
)

// The end of a process of a clone that was given up is told late: the machine
// that boots instead lives on. While the clone is on trial, it ends the others.
func TestTrial(t *testing.T) {
	r, err := pidfd.NewReaper()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	p := (&Backend{Reaper: r}).pod(sandbox.Spec{ID: "pod"})
	cmd := exec.CommandContext(t.Context(), "sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	start, err := pidfd.StartTime(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	q, err := follow(r, Process{cmd.Process.Pid, start}, nil)
	if err != nil {
		t.Fatal(err)
	}
	p.procs[roleVMM] = q
	given := &trial{failed: make(chan struct{})}
	p.ended(given, roleShare, pidfd.Exit{})
	if running, err := pidfd.Running(q.file); !running || err != nil {
		t.Errorf("the next machine was ended: %v", err)
	}
	now := &trial{failed: make(chan struct{})}
	p.trial = now
	lost := p.lost()
	p.ended(now, roleShare, pidfd.Exit{})
	p.ended(now, roleVsock, pidfd.Exit{})
	<-lost
	<-q.done
	if q.exit.Status != 128+uint32(unix.SIGKILL) {
		t.Errorf("exit %+v", q.exit)
	}
	select {
	case <-p.over:
		t.Error("the pod is over, which may boot yet")
	default:
	}
	if err := p.settle(now); err == nil {
		t.Error("the trial has succeeded")
	}
}
