package e2e

import (
	"os"
	"path/filepath"
	"testing"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/containerd-kuasar/containerd-kuasar/test/bed"
)

// TestSandboxerThatIsLeftOut restarts the daemon with a configuration that
// lets the sandboxer not start: its pods live on, and are as they were once
// the configuration is mended.
func TestSandboxerThatIsLeftOut(t *testing.T) {
	b := newBed(t, bed.Options{})
	n := on(t, b, bed.Runc)
	p := n.pod(nil)
	c := n.run(p, nil)
	pid := hostPid(n, c)
	before, err := c.Status(n.ctx)
	n.must(err)

	config := filepath.Join(b.Dir, "config.toml")
	good, err := os.ReadFile(config)
	n.must(err)
	bad := string(good) + "\n[plugins.'io.containerd.kuasar.v1.worker']\npath = 'kuasar-task'\n"
	n.must(b.Kill())
	n.must(os.WriteFile(config, []byte(bad), 0o600))
	mark := b.Mark()
	n.must(b.Start(n.ctx))
	contains(t, "log", b.Log(mark), `path = \"kuasar-task\" is not absolute`, c.ID)
	works(on(t, b, bed.Stock))
	if status, err := c.Status(n.ctx); err != nil || status.State != runtime.ContainerState_CONTAINER_UNKNOWN {
		t.Errorf("the container without its sandboxer: %v, %v", status, err)
	}
	if err := p.Stop(n.ctx); err == nil {
		t.Error("the pod was stopped without its sandboxer")
	}

	n.must(b.Kill())
	n.must(os.WriteFile(config, good, 0o600))
	n.must(b.Start(n.ctx))
	equal(t, "exec", n.exec(c, "echo ok"), "ok")
	equal(t, "pid", hostPid(n, c), pid)
	after, err := c.Status(n.ctx)
	n.must(err)
	equal(t, "status", after.String(), before.String())
	status, err := p.Status(n.ctx)
	n.must(err)
	equal(t, "state of the pod", status.State, runtime.PodSandboxState_SANDBOX_READY)
}
