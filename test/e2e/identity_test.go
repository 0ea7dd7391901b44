package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/containerd-kuasar/containerd-kuasar/test/bed"
	"github.com/containerd-kuasar/containerd-kuasar/test/images"
)

// TestIdentity looks at what processes are allowed and told.
func TestIdentity(t *testing.T) {
	profile := filepath.Join(t.TempDir(), "seccomp.json")
	rule := `{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95}]}`
	if err := os.WriteFile(profile, []byte(rule), 0o644); err != nil {
		t.Fatal(err)
	}
	each(t, func(t *testing.T, n *fixture) {
		p := n.pod(nil)
		c := n.run(p, func(c *runtime.ContainerConfig) {
			c.Envs = []*runtime.KeyValue{{Key: "ONE", Value: []byte("1")}, {Key: "SPACES", Value: []byte(" a\tb ")}, {Key: "EMPTY"}}
			c.WorkingDir = "/made/for/it"
			s := c.Linux.SecurityContext
			s.RunAsUser, s.RunAsGroup = &runtime.Int64Value{Value: 1000}, &runtime.Int64Value{Value: 2000}
			s.SupplementalGroups = []int64{3000, 4000}
			s.NoNewPrivs, s.ReadonlyRootfs = true, true
			s.Capabilities = &runtime.Capability{AddCapabilities: []string{"NET_ADMIN"}, DropCapabilities: []string{"CHOWN"}}
			s.Seccomp = &runtime.SecurityProfile{ProfileType: runtime.SecurityProfile_Localhost, LocalhostRef: profile}
		})
		equal(t, "user and groups", n.exec(c, "id -u; id -g; id -G"), "1000\n2000\n2000 3000 4000 50000") // the last is of the image
		equal(t, "environment", n.exec(c, `echo "$ONE,$SPACES,${EMPTY-unset}"`), "1, a\tb ,")
		equal(t, "working directory", n.exec(c, "pwd"), "/made/for/it")
		status := n.exec(c, "cat /proc/1/status")
		for key, want := range map[string]string{
			"CapEff": "0000000000000000", "CapBnd": "00000000a80435fa", // all of containerd's but CHOWN, and NET_ADMIN
			"NoNewPrivs": "1", "Seccomp": "2",
		} {
			equal(t, key, field(status, key), want)
		}
		for script, want := range map[string]string{
			"mkdir /dev/shm/x": "Operation not supported",
			"touch /x":         "Read-only file system",
		} {
			r, err := c.Exec(n.ctx, script)
			n.must(err)
			contains(t, script, string(r.Stderr), want)
		}

		plain := n.run(p, nil)
		status = n.exec(plain, "cat /proc/1/status")
		equal(t, "capabilities of root", field(status, "CapEff"), "00000000a80425fb")
		equal(t, "score", n.exec(plain, "cat /proc/1/oom_score_adj"), n.exec(plain, "cat /proc/self/oom_score_adj"))

		n.must(n.Pull(n.ctx, images.User))
		image := n.run(p, func(c *runtime.ContainerConfig) { c.Image.Image = images.User })
		equal(t, "user of the image", n.exec(image, "id -u; id -g; id -G"), "1000\n1000\n1000 50000")
	})
}

// field is the value of a line of /proc/<pid>/status.
func field(status, key string) string {
	for line := range strings.Lines(status) {
		if name, value, _ := strings.Cut(line, ":"); name == key {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// TestSignals ends containers as kubelet does.
func TestSignals(t *testing.T) {
	each(t, func(t *testing.T, n *fixture) {
		p := n.pod(nil)
		for _, test := range []struct {
			name, script string
			grace        int64
			code         int32
		}{
			{"handled", "trap 'exit 9' TERM; echo ready; while :; do sleep 0.1; done", 30, 9},
			{"ignored", "trap '' TERM; echo ready; while :; do sleep 0.1; done", 1, 137},
			{"at once", "echo ready; sleep 100000", 0, 137},
		} {
			c := n.run(p, bed.Script(test.script))
			n.must(c.AwaitLog(n.ctx, "ready"))
			n.must(c.Stop(n.ctx, test.grace))
			equal(t, test.name, n.exit(c).ExitCode, test.code)
		}
	})
}
