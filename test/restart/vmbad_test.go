package restart

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/containerd-kuasar/containerd-kuasar/test/bed"
	"github.com/containerd-kuasar/containerd-kuasar/test/images"
)

// badMachines are handlers' options that no machine starts with, and what the
// error has to say. Paths without a directory are the bed's guest's.
var badMachines = []struct {
	name, options string
	says          []string
}{
	{"no QEMU", "path = '/nowhere/qemu'", []string{"/nowhere/qemu", "install it there or correct the path"}},
	{"no kernel", "kernel = '/nowhere/vmlinux'", []string{"/nowhere/vmlinux", "make guest"}},
	{"no initrd", "initrd = '/nowhere/initramfs'", []string{"/nowhere/initramfs", "make guest"}},
	{"no virtiofsd", "virtiofsd = '/nowhere/virtiofsd'", []string{"/nowhere/virtiofsd", "install virtiofsd"}},
	{"no vsock", "vsock = 'user'\nvsock_path = '/nowhere/vsock'", []string{"/nowhere/vsock", "install vhost-device-vsock"}},
	{"kernel that is none", "kernel = '/etc/passwd'", []string{"/etc/passwd", "the machine ended before its agent was ready", "make guest"}},
	{"no agent in the guest", "kernel_params = 'rdinit=/nowhere init=/nowhere'", []string{"the machine ended before its agent was ready", "the guest says", "make guest"}},
	{"guest that is slow", "boot_timeout = 1", []string{"not ready within 1s (boot_timeout)"}},
	{"too little memory", "memory = 16", []string{"memory = 16", "from 64"}},
	{"unknown key", "memroy = 256", []string{"memroy", "memory"}},
	{"unknown VMM", "hypervisor = 'bochs'", []string{"bochs", "qemu"}},
	{"unknown machine", "machine = 'i440fx'", []string{"i440fx", "q35"}},
	{"path that pods set", "allow = ['kernel']", []string{"kernel", "no key that pods may be allowed to set"}},
}

// handlers are the configuration of badMachines, as bad0 and so on, and of
// "allows", whose pods may set two options.
func (n *node) handlers(guest, vsock string) string {
	const handler = `
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.%[1]s]
runtime_type = 'io.containerd.kuasar.v1'
sandboxer = 'vmm'
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.%[1]s.options]
%[2]s
`
	usual := map[string]string{"kernel": guest + "/vmlinux", "initrd": guest + "/initramfs.cpio", "vsock_path": vsock}
	complete := func(options string) string {
		for key, value := range usual {
			if !strings.Contains("\n"+options, "\n"+key+" =") {
				options += fmt.Sprintf("\n%s = '%s'", key, value)
			}
		}
		return options
	}
	var all strings.Builder
	for i, m := range badMachines {
		fmt.Fprintf(&all, handler, fmt.Sprint("bad", i), complete(m.options))
	}
	fmt.Fprintf(&all, handler, "allows", complete("allow = ['memory', 'vcpus']"))
	return all.String()
}

// newBadNode is a node with handlers.
func newBadNode(t *testing.T) *node {
	t.Helper()
	bed.RequireVMM(t)
	guest, err := filepath.Abs("../../build/guest")
	if err != nil {
		t.Fatal(err)
	}
	vsock, err := lookPath("vhost-device-vsock")
	if err != nil {
		t.Fatal(err)
	}
	n := &node{t: t, handler: bed.VMM}
	n.Bed = bed.Test(t, bed.Options{Config: n.handlers(guest, vsock)})
	ctx, cancel := context.WithTimeout(context.Background(), vmDeadline)
	t.Cleanup(cancel)
	n.ctx = ctx
	n.must(n.Pull(ctx, images.Busybox))
	return n
}

// refused holds that an error says what is wrong, and that nothing is left.
func (n *node) refused(err error, says ...string) {
	n.t.Helper()
	if err == nil {
		n.t.Error("no error")
		return
	}
	for _, text := range says {
		if !strings.Contains(err.Error(), text) {
			n.t.Errorf("%q is not in: %v", text, err)
		}
	}
}

// TestBadMachine runs pods whose machines cannot start: an error says why and
// what to do, and nothing is left.
func TestBadMachine(t *testing.T) {
	n := newBadNode(t)
	for i, m := range badMachines {
		t.Run(m.name, func(t *testing.T) {
			n := *n
			n.t = t
			n.within(30*time.Second, "refusal", func() error {
				_, err := n.runPodOf(fmt.Sprint("bad", i), n.podConfig())
				n.refused(err, m.says...)
				return nil
			})
			n.clean()
		})
	}
}

// clean holds that nothing is left of pods.
func (n *node) clean(but ...string) {
	n.t.Helper()
	leaks, err := n.Leaks(n.ctx)
	n.must(err)
	if leaks = slices.DeleteFunc(leaks, func(s string) bool { return slices.Contains(but, s) }); len(leaks) > 0 {
		n.t.Errorf("leaks:\n%s", strings.Join(leaks, "\n"))
	}
}

// TestBadAnnotation has pods ask for what they may not have, or what there is
// not.
func TestBadAnnotation(t *testing.T) {
	n := newBadNode(t)
	for name, test := range map[string]struct {
		handler, key, value string
		says                []string
	}{
		"none is allowed":    {bed.VMM, "memory", "512", []string{"may set none", "the operator decides by allow"}},
		"another is":         {"allows", "kernel_params", "quiet", []string{"may set memory, vcpus"}},
		"no such key":        {"allows", "cpus", "2", []string{"vmm.kuasar.io/cpus", "may set memory, vcpus"}},
		"no number":          {"allows", "vcpus", "many", []string{"many", "a number from 1"}},
		"not quite one":      {"allows", "vcpus", "2x", []string{"2x", "a number from 1"}},
		"below the floor":    {"allows", "memory", "16", []string{"16", "from 64"}},
		"a path of the host": {"allows", "kernel", "/boot/vmlinuz", []string{"may set memory, vcpus"}},
	} {
		t.Run(name, func(t *testing.T) {
			n := *n
			n.t = t
			config := n.podConfig()
			config.Annotations = map[string]string{"vmm.kuasar.io/" + test.key: test.value}
			_, err := n.runPodOf(test.handler, config)
			n.refused(err, test.says...)
			n.clean()
		})
	}
}

// TestBadContainerVM has containers that a pod cannot have. The pod has others
// afterwards.
func TestBadContainerVM(t *testing.T) {
	n := newVMNode(t)
	p, err := n.runPod(n.podConfig())
	n.must(err)
	before, err := n.Leaks(n.ctx)
	n.must(err)
	volume := filepath.Join(n.Dir, "volume")
	for name, test := range map[string]struct {
		change func(*runtime.ContainerConfig)
		spoil  func() // before the start
		says   []string
	}{
		"volume that vanished": {
			change: func(c *runtime.ContainerConfig) {
				c.Mounts = append(c.Mounts, &runtime.Mount{HostPath: volume, ContainerPath: "/volume"})
			},
			spoil: func() { n.must(os.RemoveAll(volume)) },
			says:  []string{"volume", volume, "no such file"},
		},
		"program that is not there": {
			change: func(c *runtime.ContainerConfig) { c.Command = []string{"/no/such/program"} },
			says:   []string{"/no/such/program"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			n := *n
			n.t = t
			n.must(os.MkdirAll(volume, 0o755))
			id, err := n.createContainer(p, strings.ReplaceAll(name, " ", "-"), "true", test.change)
			n.must(err)
			if test.spoil != nil {
				test.spoil()
			}
			n.refused(n.startContainer(id), test.says...)
			_, err = n.Runtime.RemoveContainer(n.ctx, &runtime.RemoveContainerRequest{ContainerId: id})
			n.must(err)
			n.clean(before...)
		})
	}
	// What is no program here is found out when the container has started.
	n.must(os.MkdirAll(volume, 0o755))
	n.must(os.WriteFile(filepath.Join(volume, "program"), foreign(), 0o755))
	id, err := n.createContainer(p, "foreign", "", func(c *runtime.ContainerConfig) {
		c.Command = []string{"/volume/program"}
		c.Mounts = append(c.Mounts, &runtime.Mount{HostPath: volume, ContainerPath: "/volume"})
	})
	n.must(err)
	if err := n.startContainer(id); err != nil {
		n.refused(err, "/volume/program", "exec format error")
	} else if s := n.awaitExit(id); s.ExitCode == 0 {
		t.Errorf("a program of another architecture ended as %v", s)
	}
	id, err = n.createContainer(p, "good", "exit 4")
	n.must(err)
	n.must(n.startContainer(id))
	if s := n.awaitExit(id); s.ExitCode != 4 {
		t.Errorf("exit code %d", s.ExitCode)
	}
}

// foreign is the head of a program for a machine that nobody has: ELF, 64 bits,
// EM_ALPHA.
func foreign() []byte {
	b := make([]byte, 4096)
	copy(b, "\x7fELF\x02\x01\x01")
	b[16], b[18], b[19], b[20] = 2, 0x26, 0x90, 1
	return b
}
