package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd-kuasar/containerd-kuasar/test/bed"
)

// daemon runs the daemon's binary to its end.
func daemon(t *testing.T, args ...string) string {
	t.Helper()
	bed.Require(t)
	out, err := bed.Output(exec.CommandContext(t.Context(), "../../bin/containerd-kuasar", args...))
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestVersion(t *testing.T) {
	contains(t, "version", daemon(t, "--version"), "github.com/containerd-kuasar/containerd-kuasar", " v2.4.2+kuasar.")
}

func TestConfig(t *testing.T) {
	contains(t, "default configuration", daemon(t, "config", "default"),
		"version = 4", "[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]", "kuasar")
	old := filepath.Join(t.TempDir(), "config.toml")
	const version2 = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.kuasar-runc]\n" +
		"runtime_type = \"io.containerd.kuasar.v1\"\nsandboxer = \"runc\"\n"
	if err := os.WriteFile(old, []byte(version2), 0o600); err != nil {
		t.Fatal(err)
	}
	migrated := daemon(t, "--config", old, "config", "migrate")
	contains(t, "migrated configuration", migrated, "version = 4", "[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.kuasar-runc]")
	contains(t, "deploy/config.toml", daemon(t, "--config", "../../deploy/config.toml", "config", "dump"), "kuasar-runc")
}

// TestPlugins holds that every plugin of the stock daemon is there and is
// loaded or skipped as there.
func TestPlugins(t *testing.T) {
	b := newBed(t, bed.Options{})
	n := on(t, b, bed.Runc)
	list := func() map[string]string {
		plugins := make(map[string]string)
		for line := range strings.Lines(n.ctr("plugins", "ls")) {
			if fields := strings.Fields(line); len(fields) >= 4 && fields[0] != "TYPE" {
				plugins[fields[0]+"."+fields[1]] = fields[len(fields)-1]
			}
		}
		return plugins
	}
	ours := list()
	n.must(b.Stop(n.ctx))
	n.must(b.StartBinary(n.ctx, b.Path("build/containerd")))
	for name, status := range list() {
		equal(t, name, ours[name], status)
	}
	equal(t, "our sandboxer", ours["io.containerd.sandbox.controller.v1.runc"], "ok")
}
