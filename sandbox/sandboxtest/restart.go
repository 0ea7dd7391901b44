package sandboxtest

import "testing"

// A sandbox that was never started belongs to a call that died.
func restartCreated(_ *testing.T, b *bench) {
	b.must(b.create("one"))
	b.restart()
	b.gone("one")
}

func restartRunning(t *testing.T, b *bench) {
	instance := b.run("one")
	for range 2 {
		b.restart()
		b.want("one", ready)
		s, err := b.Status(b.ctx, "one", false)
		b.must(err)
		if !s.CreatedAt.Equal(instance.CreatedAt) {
			t.Errorf("created at %v, before the restart at %v", s.CreatedAt, instance.CreatedAt)
		}
		if instance.Pid != 0 && s.Pid != instance.Pid {
			t.Errorf("pid %d, before the restart %d", s.Pid, instance.Pid)
		}
	}
	b.must(b.stop("one"))
	if _, err := b.Wait(b.ctx, "one"); err != nil {
		t.Error(err)
	}
	b.must(b.shutdown("one"))
	b.gone("one")
}

func restartStopped(t *testing.T, b *bench) {
	b.run("one")
	b.must(b.stop("one"))
	before, err := b.Wait(b.ctx, "one")
	b.must(err)
	b.restart()
	b.want("one", notReady)
	after, err := b.Wait(b.ctx, "one")
	b.must(err)
	if !after.ExitedAt.Equal(before.ExitedAt) || after.ExitStatus != before.ExitStatus {
		t.Errorf("exit %+v, before the restart %+v", after, before)
	}
	b.must(b.shutdown("one"))
	b.gone("one")
}

// killed plays the death of the daemon at a point of a backend's work: that
// call never returns. The next daemon has no trace of a sandbox that did not
// run yet or was being deleted, and one that was being stopped is.
func killed(t *testing.T, b *bench, at point) {
	bystander := b.run("bystander")
	g := b.gated(at)
	go func() { // never to return from where it is killed
		if b.create("one") != nil {
			return
		}
		if _, err := b.Start(b.ctx, "one"); err != nil {
			return
		}
		if b.stop("one") == nil {
			_ = b.shutdown("one")
		}
	}()
	b.reach(g)
	b.restart()

	s, err := b.Status(b.ctx, "bystander", false)
	b.must(err)
	if s.State != ready || !s.CreatedAt.Equal(bystander.CreatedAt) {
		t.Errorf("the other sandbox is %+v", s)
	}
	if at == beforeStop || at == afterStop {
		b.want("one", notReady)
		if _, err := b.Wait(b.ctx, "one"); err != nil {
			t.Errorf("wait: %v", err)
		}
		b.must(b.stop("one"))
		b.must(b.shutdown("one"))
	}
	b.gone("one")
	b.run("one") // nothing of it is in the way
	b.must(b.shutdown("one"))
	b.must(b.shutdown("bystander"))
}
