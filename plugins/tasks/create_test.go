package tasks

import (
	"errors"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/runtime"
	"github.com/containerd/errdefs"
)

func TestBadInput(t *testing.T) {
	r := newRig(t)
	for name, c := range map[string]struct {
		change func(*runtime.CreateOpts)
		says   string
	}{
		"no spec":    {func(o *runtime.CreateOpts) { o.Spec = nil }, "no spec"},
		"no process": {func(o *runtime.CreateOpts) { *o = createOpts(`{"root":{"path":"x"}}`) }, "no process"},
		"no rootfs": {func(o *runtime.CreateOpts) {
			*o = createOpts(`{"process":{"args":["x"]}}`)
			o.Rootfs = nil
		}, "no rootfs"},
		"no JSON": {func(o *runtime.CreateOpts) { *o = createOpts(`{`) }, "decode spec"},
	} {
		t.Run(name, func(t *testing.T) {
			opts := createOpts(plainSpec)
			c.change(&opts)
			_, err := r.Create(r.ctx, "c", opts)
			if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("error %v", err)
			}
			r.clean("c")
		})
	}
	if _, err := r.Create(r.ctx, "../c", createOpts(plainSpec)); !errdefs.IsInvalidArgument(err) {
		t.Errorf("bad id: %v", err)
	}
	r.create("c")
	if _, err := r.Create(r.ctx, "c", createOpts(plainSpec)); !errdefs.IsAlreadyExists(err) {
		t.Errorf("second task of a name: %v", err)
	}
	r.log.want("create c")
}

func TestCreateInStoppedSandbox(t *testing.T) {
	r := newRig(t)
	r.must(r.boxes.Stop(r.ctx, podID))
	if _, err := r.Create(r.ctx, "c", createOpts(plainSpec)); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("error %v", err)
	}
	r.clean("c")
}

// A Create that fails anywhere leaves nothing, and its id is free.
func TestFailedCreate(t *testing.T) {
	refused := errors.New("refused")
	for name, fail := range map[string]func(*rig, error){
		"mounts":  func(r *rig, err error) { r.mounts.fail = err },
		"prepare": func(r *rig, err error) { r.pods.failing("prepare", err) },
		"agent":   func(r *rig, err error) { r.agent.failing("create", err) },
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			fail(r, refused)
			if _, err := r.Create(r.ctx, "c", createOpts(plainSpec)); err == nil || !strings.Contains(err.Error(), "refused") {
				t.Errorf("error %v", err)
			}
			r.clean("c")
			fail(r, nil)
			r.run("c")
			r.log.want("create c", "start c")
		})
	}
}

// An exit may be learned of when the task is removed already.
func TestErasedRecordStaysErased(t *testing.T) {
	r := newRig(t)
	c := r.run("c").(*Task)
	p := r.exec(c, "e").(*process)
	r.agent.exit("c", "", 1)
	r.wait(c)
	_, err := r.Delete(r.ctx, "c")
	r.must(err)
	p.exited(0, exit{Status: 1})
	r.clean("c")
}
