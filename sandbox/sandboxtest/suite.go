package sandboxtest

import (
	"context"
	"testing"
	"time"

	core "github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/errdefs"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/containerd-kuasar/containerd-kuasar/sandbox"
)

// Suite is what a backend's conformance is tested with.
type Suite struct {
	// Backend makes the backend under test. It is called again for each
	// restart of the daemon that a case plays.
	Backend func(t *testing.T) sandbox.Backend

	// Config of the pods. Each gets a name and an id of its own.
	Config *runtime.PodSandboxConfig

	// Container describes one that Prepare takes. Cases about containers are
	// left out without it.
	Container func(t *testing.T, id string) *sandbox.Container

	// Leaks fails the test if anything is left of its sandboxes outside their
	// directories, which are looked after. It may be nil.
	Leaks func(t *testing.T)
}

// Run runs all cases. Each has a Controller and a directory of its own.
func Run(t *testing.T, s Suite) {
	cases := map[string]func(*testing.T, *bench){
		"Lifecycle":           lifecycle,
		"StopTwice":           stopTwice,
		"StopUnstarted":       stopUnstarted,
		"ShutdownWithoutStop": shutdownWithoutStop,
		"ShutdownUnstarted":   shutdownUnstarted,
		"UnknownSandbox":      unknownSandbox,
		"StartTwice":          startTwice,
		"StartAfterStop":      startAfterStop,
		"CreateTwice":         createTwice,
		"WaitEndsWithContext": waitEndsWithContext,
		"BadOptions":          badOptions,
		"AnswersDuringStart":  answersDuringStart,
		"StopDuringStart":     endDuringStart((*bench).stop),
		"ShutdownDuringStart": endDuringStart((*bench).shutdown),
		"CanceledStart":       canceledStart,
		"Metrics":             metrics,
		"Containers":          containers,
		"RestartCreated":      restartCreated,
		"RestartRunning":      restartRunning,
		"RestartStopped":      restartStopped,
		"ManyAtOnce":          manyAtOnce,
		"OneByMany":           oneByMany,
	}
	for name, run := range cases {
		t.Run(name, func(t *testing.T) { run(t, newBench(t, s)) })
	}
	for _, at := range []point{beforeCreate, afterCreate, beforeStart, afterStart, beforeStop, afterStop, beforeDelete, afterDelete} {
		t.Run("Killed "+string(at), func(t *testing.T) { killed(t, newBench(t, s), at) })
	}
}

func (b *bench) stop(id string) error     { return b.Stop(b.ctx, id) }
func (b *bench) shutdown(id string) error { return b.Shutdown(b.ctx, id) }

func lifecycle(t *testing.T, b *bench) {
	b.must(b.create("one"))
	b.want("one", notReady)
	instance, err := b.Start(b.ctx, "one")
	b.must(err)
	if instance.SandboxID != "one" || instance.CreatedAt.IsZero() || instance.Spec == nil || instance.Labels["name"] != "one_default" {
		t.Errorf("instance %+v", instance)
	}
	b.want("one", ready)
	if p, err := b.Platform(b.ctx, "one"); err != nil || p.OS == "" || p.Architecture == "" {
		t.Errorf("platform %+v, %v", p, err)
	}
	exited := make(chan core.ExitStatus, 1)
	waited := async(func() error {
		e, err := b.Wait(b.ctx, "one")
		exited <- e
		return err
	})
	b.must(b.stop("one"))
	b.must(b.await("wait", waited))
	if e := <-exited; e.ExitedAt.IsZero() {
		t.Errorf("exit %+v", e)
	}
	b.want("one", notReady)
	b.must(b.shutdown("one"))
	b.gone("one")
}

func stopTwice(_ *testing.T, b *bench) {
	b.run("one")
	b.must(b.stop("one"))
	b.must(b.stop("one"))
	b.want("one", notReady)
	b.must(b.shutdown("one"))
	b.must(b.shutdown("one"))
	b.must(b.stop("one"))
	b.gone("one")
}

func stopUnstarted(t *testing.T, b *bench) {
	b.must(b.create("one"))
	b.must(b.stop("one"))
	b.want("one", notReady)
	if _, err := b.Wait(b.ctx, "one"); err != nil {
		t.Errorf("wait: %v", err)
	}
	b.must(b.shutdown("one"))
	b.gone("one")
}

func shutdownWithoutStop(_ *testing.T, b *bench) {
	b.run("one")
	b.must(b.shutdown("one"))
	b.gone("one")
}

func shutdownUnstarted(_ *testing.T, b *bench) {
	b.must(b.create("one"))
	b.must(b.shutdown("one"))
	b.gone("one")
}

func unknownSandbox(t *testing.T, b *bench) {
	_, start := b.Start(b.ctx, "none")
	_, wait := b.Wait(b.ctx, "none")
	_, metrics := b.Metrics(b.ctx, "none")
	_, platform := b.Platform(b.ctx, "none")
	_, status := b.Status(b.ctx, "none", true)
	_, get := b.Get("none")
	update := b.Update(b.ctx, "none", core.Sandbox{ID: "none"}, "extensions")
	for call, err := range map[string]error{
		"start": start, "wait": wait, "metrics": metrics, "platform": platform, "status": status, "get": get, "update": update,
	} {
		if !errdefs.IsNotFound(err) {
			t.Errorf("%s: %v", call, err)
		}
	}
	b.must(b.stop("none"))
	b.must(b.shutdown("none"))
}

func startTwice(t *testing.T, b *bench) {
	b.run("one")
	if _, err := b.Start(b.ctx, "one"); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("second start: %v", err)
	}
	b.want("one", ready) // and it did no harm
	b.must(b.shutdown("one"))
}

func startAfterStop(t *testing.T, b *bench) {
	b.run("one")
	b.must(b.stop("one"))
	if _, err := b.Start(b.ctx, "one"); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("start after stop: %v", err)
	}
	b.want("one", notReady)
	b.must(b.shutdown("one"))
	b.gone("one")
}

func createTwice(t *testing.T, b *bench) {
	b.run("one")
	if err := b.create("one"); !errdefs.IsAlreadyExists(err) {
		t.Errorf("second create: %v", err)
	}
	two := core.Sandbox{ID: "two", Labels: map[string]string{"name": "one_default"}}
	options := core.WithOptions(b.s.Config)
	if b.s.Config == nil {
		options = core.WithOptions(&runtime.PodSandboxConfig{})
	}
	if err := b.Create(b.ctx, two, options); !errdefs.IsAlreadyExists(err) {
		t.Errorf("create with a taken name: %v", err)
	}
	b.want("one", ready)
	b.must(b.shutdown("one"))
	b.must(b.Create(b.ctx, two, options)) // the name is free again
	b.must(b.shutdown("two"))
}

func waitEndsWithContext(t *testing.T, b *bench) {
	b.run("one")
	ctx, cancel := context.WithCancel(b.ctx)
	waited := async(func() error {
		_, err := b.Wait(ctx, "one")
		return err
	})
	cancel()
	if err := b.await("wait", waited); err == nil {
		t.Error("the sandbox runs")
	}
	b.want("one", ready)
	b.must(b.shutdown("one"))
}

func badOptions(t *testing.T, b *bench) {
	if err := b.create("one", []byte("no_such_option = 1\n")...); !errdefs.IsInvalidArgument(err) {
		t.Errorf("unknown option: %v", err)
	}
	b.gone("one")
	if err := b.create("one", []byte("no TOML at all")...); !errdefs.IsInvalidArgument(err) {
		t.Errorf("bad syntax: %v", err)
	}
	b.gone("one")
}

// metrics may be missing; they may not be late.
func metrics(t *testing.T, b *bench) {
	b.run("one")
	began := time.Now()
	m, err := b.Metrics(b.ctx, "one")
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("metrics took %v", took)
	}
	switch {
	case errdefs.IsNotImplemented(err):
	case err != nil:
		t.Error(err)
	case m.ID != "one" || m.Data == nil || m.Timestamp == nil:
		t.Errorf("metrics %+v", m)
	}
	b.must(b.shutdown("one"))
}

// containers come and go, also in a sandbox that a former daemon had, and need
// no release before a shutdown.
func containers(t *testing.T, b *bench) {
	if b.s.Container == nil {
		t.Skip("needs Suite.Container")
	}
	b.run("one")
	live, err := b.Get("one")
	b.must(err)
	b.must(live.Release(b.ctx, "none"))
	for _, id := range []string{"released", "kept", "restarted"} {
		bundle, err := live.Prepare(b.ctx, b.s.Container(t, id))
		b.must(err)
		if bundle.Path == "" {
			t.Errorf("container %s has no bundle", id)
		}
	}
	b.must(live.Release(b.ctx, "released"))
	b.must(live.Release(b.ctx, "released"))
	b.restart()
	live, err = b.Get("one")
	b.must(err)
	b.must(live.Release(b.ctx, "restarted"))
	if _, err := live.Prepare(b.ctx, b.s.Container(t, "released")); err != nil {
		t.Errorf("its id again: %v", err)
	}
	b.must(b.stop("one"))
	if _, err := live.Prepare(b.ctx, b.s.Container(t, "late")); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("in a stopped sandbox: %v", err)
	}
	b.must(live.Release(b.ctx, "kept"))
	b.must(b.shutdown("one"))
	b.gone("one")
}
