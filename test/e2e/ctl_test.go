package e2e

import (
	"bufio"
	"encoding/json"
	"slices"
	"strings"
	"syscall"
	"testing"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/containerd-kuasar/containerd-kuasar/ctl"
	"github.com/containerd-kuasar/containerd-kuasar/test/bed"
)

// debugging lets pods ask for a debug console.
const debugging = `
[plugins.'io.containerd.sandbox.controller.v1.vmm']
  allow = ['debug']
`

// debug asks for one.
func debug(c *runtime.PodSandboxConfig) {
	c.Annotations = map[string]string{"vmm.kuasar.io/debug": "true"}
}

// kuasarctl runs kuasar-ctl and returns what it prints.
func (n *fixture) kuasarctl(args ...string) string {
	n.t.Helper()
	out, err := bed.Output(n.KuasarCtl(n.ctx, args...))
	n.must(err)
	return out
}

// refused runs kuasar-ctl, which must fail and say why.
func (n *fixture) refused(says string, args ...string) {
	n.t.Helper()
	out, err := bed.Output(n.KuasarCtl(n.ctx, args...))
	if err == nil || !strings.Contains(err.Error(), says) {
		n.t.Errorf("kuasar-ctl %s: %q, %v: it does not say %q", strings.Join(args, " "), out, err, says)
	}
}

// sandboxes are what ps says, by id.
func (n *fixture) sandboxes() map[string]ctl.Sandbox {
	n.t.Helper()
	var list []ctl.Sandbox
	n.must(json.Unmarshal([]byte(n.kuasarctl("ps", "--json")), &list))
	all := map[string]ctl.Sandbox{}
	for _, s := range list {
		all[s.ID] = s
	}
	return all
}

// An operator sees what a node can run.
func TestCtlCheck(t *testing.T) {
	n := on(t, newBed(t, bed.Options{}), bed.Runc)
	var r ctl.Report
	n.must(json.Unmarshal([]byte(n.kuasarctl("check", "--json", "runc", "wasm")), &r))
	if !r.OK || len(r.Sandboxers) != 2 {
		t.Errorf("report %+v", r)
	}
	for i, handler := range []string{bed.Runc, bed.Wasm} {
		equal(t, "handler", r.Sandboxers[i].Handler, handler)
		if !slices.ContainsFunc(r.Sandboxers[i].Parts, func(p ctl.Part) bool { return p.Name == "kuasar-task" && p.Grade == ctl.OK }) {
			t.Errorf("%s: no kuasar-task in %+v", handler, r.Sandboxers[i].Parts)
		}
	}
	contains(t, "check", n.kuasarctl("check", "runc"), "kuasar-task", "runc (kuasar-runc) runs here")
}

// An operator sees what runs on a node, whoever runs it, with and without the
// daemon.
func TestCtlPs(t *testing.T) {
	n := on(t, newBed(t, bed.Options{}), bed.Runc)
	p := n.pod(nil)
	c := n.run(p, nil)
	n.handler = bed.Stock
	stock := n.pod(nil)
	all := n.sandboxes()
	s := all[p.ID]
	equal(t, "sandboxer", s.Sandboxer, "runc")
	equal(t, "state", s.State, "running")
	equal(t, "name", s.Name, p.Config.Metadata.Name)
	equal(t, "namespaces", s.Namespace+" "+s.PodNamespace, "k8s.io default")
	if len(s.Containers) != 1 || s.Containers[0].ID != c.ID || s.Containers[0].Name != c.Config.Metadata.Name || s.Containers[0].State != "running" || s.Pid == 0 || s.CreatedAt.IsZero() {
		t.Errorf("sandbox %+v", s)
	}
	other := all[stock.ID]
	equal(t, "stock sandboxer", other.Sandboxer, "podsandbox")
	equal(t, "stock name", other.Name, stock.Config.Metadata.Name)
	equal(t, "stock state", other.State, "ready")
	equal(t, "stock containers", len(other.Containers), 0)
	contains(t, "ps", n.kuasarctl("ps"), p.ID[:13], "runc", "running", p.Config.Metadata.Name)

	n.refused("no virtual machine but of the sandboxer runc", "exec", p.ID, "--", "ps")
	n.refused("no virtual machine but of the sandboxer podsandbox", "console", stock.ID)
	n.refused("not found", "exec", "nosuch", "ps")
	n.refused("usage", "exec", p.ID)

	n.must(n.Stop(n.ctx))
	s, known := n.sandboxes()[p.ID]
	equal(t, "known without the daemon", known, true)
	equal(t, "state without the daemon", s.State, "running")
	n.must(n.Start(n.ctx))
}

// An operator looks into a virtual machine that lets them, and into no other.
func TestCtlVM(t *testing.T) {
	bed.RequireVMM(t)
	b := newBed(t, bed.Options{Config: debugging})
	t.Run("closed", func(t *testing.T) {
		n := on(t, b, bed.VMM)
		contains(t, "check", n.kuasarctl("check", "vmm"), "vmm (kuasar-vmm) runs here")
		p := n.pod(nil)
		n.refused("debug = true", "exec", p.ID, "--", "ps")
		n.refused("debug = true", "console", p.ID)
	})
	n := on(t, b, bed.VMM)
	p := n.pod(debug)
	c := n.run(p, nil)
	t.Run("shown", func(t *testing.T) { on(t, b, bed.VMM).shown(p, c) })
	t.Run("session", func(t *testing.T) { on(t, b, bed.VMM).session(p) })
	t.Run("follow", func(t *testing.T) { on(t, b, bed.VMM).follows(p) })
	t.Run("restart", func(t *testing.T) {
		n := on(t, b, bed.VMM)
		n.must(n.Stop(n.ctx))
		contains(t, "processes without the daemon", n.kuasarctl("exec", p.ID, "--", "ps"), "sleep 100000")
		n.must(n.Start(n.ctx))
		contains(t, "processes after a restart", n.kuasarctl("exec", p.ID, "--", "ps"), "sleep 100000")
		n.must(p.Stop(n.ctx))
		n.refused("does not run", "exec", p.ID, "--", "ps")
	})
}

// shown holds that what there is of a machine is shown.
func (n *fixture) shown(p *bed.Pod, c *bed.Container) {
	t, name := n.t, p.Config.Metadata.Name
	t.Helper()
	s := n.sandboxes()[p.ID]
	if s.VMM != "qemu" || s.VCPUs != 1 || s.Memory != 128<<20 || s.Pid == 0 || !s.Debug || len(s.Containers) != 1 {
		t.Errorf("sandbox %+v", s)
	}
	contains(t, "ps", n.kuasarctl("ps"), "qemu", "128 MiB")

	contains(t, "help", n.kuasarctl("exec", p.ID[:12], "help"), "dmesg", "ps")
	contains(t, "processes", n.kuasarctl("exec", name, "--", "ps"), "sleep 100000", c.ID)
	contains(t, "mounts", n.kuasarctl("exec", p.ID, "--", "mounts"), "virtiofs", "cgroup2")
	contains(t, "network", n.kuasarctl("exec", "default/"+name, "--", "net"), "eth0", "10.88.", "default")
	contains(t, "kernel", n.kuasarctl("console", "--kernel", p.ID), "Linux version", "Command line")
	contains(t, "directory", n.kuasarctl("exec", p.ID, "ls", "/proc/1"), "cmdline")
	if line := n.kuasarctl("exec", p.ID, "cat", "/proc/cmdline"); !strings.Contains(line, "panic=-1") {
		t.Errorf("command line %q", line)
	}
	n.refused("no regular file", "exec", p.ID, "cat", "/dev/kmsg")
	n.refused("unknown command", "exec", p.ID, "--", "rm", "-rf", "/")
}

// session holds that commands are read and run until the end.
func (n *fixture) session(p *bed.Pod) {
	n.t.Helper()
	cmd := n.KuasarCtl(n.ctx, "console", p.ID)
	cmd.Stdin = strings.NewReader("cat /proc/sys/kernel/hostname\nnosuch\n\n ls '/sys/fs/cgroup' \nexit\nps\n")
	out, err := cmd.CombinedOutput()
	n.must(err)
	contains(n.t, "session", string(out), p.Config.Hostname, `unknown command "nosuch"`, "cgroup.procs")
	if strings.Contains(string(out), "COMMAND") {
		n.t.Errorf("after exit: %s", out)
	}
}

// follows holds that the kernel's log is shown as it comes, until whoever looks
// has seen enough, and that the console then serves others.
func (n *fixture) follows(p *bed.Pod) {
	n.t.Helper()
	cmd := n.KuasarCtl(n.ctx, "console", "-k", "-f", p.ID)
	out, err := cmd.StdoutPipe()
	n.must(err)
	n.must(cmd.Start())
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || !strings.Contains(line, "Linux version") {
		n.t.Errorf("first line %q, %v", line, err)
	}
	n.must(cmd.Process.Signal(syscall.SIGTERM))
	_ = cmd.Wait()
	if status := cmd.ProcessState; !status.Exited() {
		n.t.Errorf("kuasar-ctl: %v", status)
	}
	contains(n.t, "processes after that", n.kuasarctl("exec", p.ID, "--", "ps"), "kuasar")
}
