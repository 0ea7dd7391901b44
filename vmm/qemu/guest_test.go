package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/anypb"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/containerd-kuasar/containerd-kuasar/internal/pidfd"
	"github.com/containerd-kuasar/containerd-kuasar/internal/thread"
	"github.com/containerd-kuasar/containerd-kuasar/sandbox"
	"github.com/containerd-kuasar/containerd-kuasar/task"
	"github.com/containerd-kuasar/containerd-kuasar/task/api"
	"github.com/containerd-kuasar/containerd-kuasar/vmm"
	"github.com/containerd-kuasar/containerd-kuasar/vmm/vmmtest"
)

// addresses of the pod's interface and of its other end.
const (
	hostIP, podIP   = "10.9.0.1", "10.9.0.2"
	hostIP6, podIP6 = "fd00:9::1", "fd00:9::2"
)

// box is a pod in a machine.
type box struct {
	*testing.T
	ctx         context.Context
	dir         string
	host, netns string // network namespaces
	sandbox.Sandbox
	agent *task.Client
}

// TestGuest boots one machine, and looks at what containers find in it.
func TestGuest(t *testing.T) {
	b := newBox(t)
	for name, test := range map[string]func(*box){
		"ContainersRun":     containersRun,
		"ContainersEnd":     containersEnd,
		"ContainersAreSet":  containersAreSet,
		"ContainersAreKept": containersAreKept,
		"NamesRepeat":       namesRepeat,
		"RootIsDisk":        rootIsDisk,
		"VolumesAreDisks":   volumesAreDisks,
		"PodIsSet":          podIsSet,
		"ModulesComeLater":  modulesComeLater,
		"PodHasNetwork":     podHasNetwork,
		"VerbsRepeat":       verbsRepeat,
		"VerbsRefuse":       verbsRefuse,
		"IsNobody":          isNobody,
	} {
		t.Run(name, func(t *testing.T) {
			inner := *b
			inner.T = t
			test(&inner)
		})
	}
}

func newBox(t *testing.T) *box { return newNode(t).newBox(t, "pod") }

// node is a daemon with machines.
type node struct {
	ctx     context.Context
	dir     string
	backend *vmm.Backend
}

func newNode(t *testing.T) *node {
	o := options(t)
	o.Hypervisor = "test"
	dir, err := os.MkdirTemp("", "vm") // short, for sockets
	if err != nil {
		t.Fatal(err)
	}
	reaper, err := pidfd.NewReaper()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(namespaces.WithNamespace(context.Background(), "test"), 3*time.Minute)
	n := &node{ctx, dir, &vmm.Backend{Drivers: map[string]vmm.Driver{"test": Driver{}}, Defaults: o, Reaper: reaper}}
	t.Cleanup(func() {
		defer cancel()
		if err := errors.Join(n.backend.Close(), reaper.Close(), os.RemoveAll(dir)); err != nil {
			t.Error(err)
		}
		vmmtest.Leaks(t)
	})
	return n
}

// newBox runs a pod until the test ends.
func (n *node) newBox(t *testing.T, id string) *box {
	b := &box{T: t, ctx: n.ctx, dir: filepath.Join(n.dir, id)}
	b.host, b.netns = newNetwork(t)
	spec := sandbox.Spec{
		ID: id, Namespace: "test", Dir: b.dir, NetNS: b.netns, CreatedAt: time.Now(),
		Config: &runtime.PodSandboxConfig{Hostname: "name-of-" + id, Linux: &runtime.LinuxPodSandboxConfig{
			CgroupParent: vmmtest.Group, Sysctls: map[string]string{"kernel.msgmax": "16384"},
		}},
		Saved: func(context.Context) error { return nil },
	}
	b.must(os.Mkdir(spec.Dir, 0o711))
	var err error
	b.Sandbox, err = n.backend.Create(n.ctx, spec)
	b.must(err)
	t.Cleanup(b.remove)
	b.must(b.Start(n.ctx))
	b.agent, err = b.Agent(n.ctx)
	b.must(err)
	return b
}

// remove removes the pod, which may be removed already.
func (b *box) remove() {
	b.Helper()
	b.must(b.Stop(b.ctx))
	b.must(b.Delete(b.ctx))
}

func (b *box) must(err error) {
	b.Helper()
	if err != nil {
		b.Fatal(errgrpc.ToNative(err))
	}
}

// newNetwork is a pod's network namespace with a veth, as CNI makes it, whose
// other end is in a namespace that stands for the host: nothing that another
// test left behind has its addresses there.
func newNetwork(t *testing.T) (host, pod string) {
	t.Helper()
	host, pod = newNamespace(t), newNamespace(t)
	ns, err := os.Open(pod)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "host", MTU: 1400}, PeerName: "eth0", PeerNamespace: netlink.NsFd(int(ns.Fd()))}
	for _, end := range []struct {
		path string
		f    func() error
	}{
		{host, func() error { return netlink.LinkAdd(veth) }},
		{host, func() error { return address("host", hostIP, hostIP6) }},
		{pod, func() error { return address("eth0", podIP, podIP6) }},
		{pod, func() error { return netlink.RouteAdd(&netlink.Route{Gw: net.ParseIP(hostIP)}) }},
	} {
		if err := inNamespace(end.path, end.f); err != nil {
			t.Fatal(err)
		}
	}
	return host, pod
}

// newNamespace is one for a network, pinned while the test runs.
func newNamespace(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "net")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	err := thread.Do(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		return unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, "")
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(path, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return path
}

// inNamespace calls f in the network namespace at path.
func inNamespace(path string, f func() error) error {
	return thread.Do(func() error {
		ns, err := os.Open(path)
		if err != nil {
			return err
		}
		defer ns.Close()
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return err
		}
		return f()
	})
}

// address gives an interface its addresses, and those of the loopback.
func address(name, ip, ip6 string) error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	l, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	if err := errors.Join(netlink.LinkSetUp(lo), netlink.LinkSetUp(l)); err != nil {
		return err
	}
	for _, a := range []string{ip + "/24", ip6 + "/64"} {
		addr, err := netlink.ParseAddr(a)
		if err != nil {
			return err
		}
		addr.Flags = unix.IFA_F_NODAD
		if err := netlink.AddrAdd(l, addr); err != nil {
			return err
		}
	}
	return nil
}

// container is one with busybox, and a directory of the host at /out.
type container struct {
	*box
	id, out string
	removed bool
}

// create makes one that runs a shell script.
func (b *box) create(id, script string, opts ...oci.SpecOpts) *container {
	b.Helper()
	rootfs := b.TempDir()
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		b.Skipf("needs /bin/busybox (hack/install): %v", err)
	}
	b.must(os.Mkdir(filepath.Join(rootfs, "bin"), 0o755))
	b.must(os.WriteFile(filepath.Join(rootfs, "bin/sh"), busybox, 0o755))
	b.must(os.Chmod(rootfs, 0o755))
	return b.createOn(id, script, []mount.Mount{{Type: "bind", Source: rootfs, Options: []string{"rbind", "rw"}}}, opts...)
}

// createOn is create with a root file system that has a shell.
func (b *box) createOn(id, script string, rootfs []mount.Mount, opts ...oci.SpecOpts) *container {
	b.Helper()
	out := b.TempDir()
	b.must(os.Chmod(out, 0o777))
	spec, err := oci.GenerateSpec(b.ctx, nil, &containers.Container{ID: id}, append([]oci.SpecOpts{
		oci.WithProcessArgs("/bin/sh", "-c", script),
		oci.WithMounts([]specs.Mount{{Destination: "/out", Type: "bind", Source: out, Options: []string{"rbind", "rw"}}}),
		oci.WithLinuxNamespace(specs.LinuxNamespace{Type: specs.NetworkNamespace, Path: b.netns}),
		oci.WithLinuxNamespace(specs.LinuxNamespace{Type: specs.UTSNamespace, Path: "/proc/1/ns/uts"}),
		oci.WithLinuxNamespace(specs.LinuxNamespace{Type: specs.IPCNamespace, Path: "/proc/1/ns/ipc"}),
	}, opts...)...)
	b.must(err)
	bundle, err := b.Prepare(b.ctx, &sandbox.Container{
		ID: id, Spec: spec, Rootfs: rootfs,
	})
	b.must(err)
	_, err = b.agent.Create(b.ctx, &taskapi.CreateTaskRequest{ID: id, Bundle: bundle.Path})
	b.must(err)
	c := &container{box: b, id: id, out: out}
	b.Cleanup(c.remove)
	return c
}

// remove ends it, once.
func (c *container) remove() {
	if c.removed {
		return
	}
	c.removed = true
	_, _ = c.agent.Kill(c.ctx, &taskapi.KillRequest{ID: c.id, Signal: 9, All: true})
	_, _ = c.agent.Wait(c.ctx, &taskapi.WaitRequest{ID: c.id})
	_, err := c.agent.Delete(c.ctx, &taskapi.DeleteRequest{ID: c.id})
	c.must(err)
	c.must(c.Release(c.ctx, c.id))
}

func (c *container) start() *container {
	c.Helper()
	_, err := c.agent.Start(c.ctx, &taskapi.StartRequest{ID: c.id})
	c.must(err)
	return c
}

func (c *container) wait() uint32 {
	c.Helper()
	r, err := c.agent.Wait(c.ctx, &taskapi.WaitRequest{ID: c.id})
	c.must(err)
	return r.ExitStatus
}

// read is what it wrote to a file in /out.
func (c *container) read(name string) string {
	c.Helper()
	b, err := os.ReadFile(filepath.Join(c.out, name))
	c.must(err)
	return strings.TrimSpace(string(b))
}

// run returns what a script says.
func (b *box) run(id, script string, opts ...oci.SpecOpts) string {
	b.Helper()
	c := b.create(id, "exec >/out/text 2>&1; "+script, opts...).start()
	if got := c.wait(); got != 0 {
		b.Errorf("exit status %d: %s", got, c.read("text"))
	}
	return c.read("text")
}

func process(b *box, args ...string) *anypb.Any {
	b.Helper()
	spec, err := oci.GenerateSpec(b.ctx, nil, &containers.Container{ID: "exec"}, oci.WithProcessArgs(args...))
	b.must(err)
	raw, err := json.Marshal(spec.Process)
	b.must(err)
	return &anypb.Any{TypeUrl: "types.containerd.io/opencontainers/runtime-spec/1/Process", Value: raw}
}

func (b *box) same(what, got, want string) {
	b.Helper()
	if got != want {
		b.Errorf("%s: got %q, want %q", what, got, want)
	}
}

func containersRun(b *box) {
	one := b.create("one", "echo $$ >/out/pid; read x </out/none || true; echo data >/root-is-writable && cat /root-is-writable >/out/file; exit 7").start()
	other := b.create("other", "exec sleep 1000").start()
	if got := one.wait(); got != 7 {
		b.Errorf("exit status %d", got)
	}
	b.same("pid", one.read("pid"), "1")
	b.same("file", one.read("file"), "data")
	_, err := b.agent.Exec(b.ctx, &taskapi.ExecProcessRequest{ID: other.id, ExecID: "e", Spec: process(b, "/bin/sh", "-c", "echo exec >/out/exec; exit 3")})
	b.must(err)
	_, err = b.agent.Start(b.ctx, &taskapi.StartRequest{ID: other.id, ExecID: "e"})
	b.must(err)
	r, err := b.agent.Wait(b.ctx, &taskapi.WaitRequest{ID: other.id, ExecID: "e"})
	b.must(err)
	b.same("exec", fmt.Sprint(other.read("exec"), r.ExitStatus), "exec3")
}

// containersEnd by signals and by the kernel, and the guest goes on.
func containersEnd(b *box) {
	c := b.create("killed", "exec sleep 1000").start()
	_, err := b.agent.Kill(b.ctx, &taskapi.KillRequest{ID: c.id, Signal: uint32(unix.SIGKILL)})
	b.must(err)
	if got := c.wait(); got != 128+9 {
		b.Errorf("killed: exit status %d", got)
	}
	c = b.create("fat", "exec tail /dev/zero", limit(16<<20)).start()
	if got := c.wait(); got != 128+9 {
		b.Errorf("out of memory: exit status %d", got)
	}
}

func limit(bytes int64) oci.SpecOpts {
	return func(_ context.Context, _ oci.Client, _ *containers.Container, s *oci.Spec) error {
		s.Linux.Resources.Memory = &specs.LinuxMemory{Limit: &bytes}
		return nil
	}
}

func containersAreSet(b *box) {
	got := b.run("set", `
		cat /proc/self/cgroup
		ulimit -n
		id -u; id -g
		grep CapEff /proc/self/status
		grep Seccomp: /proc/self/status
		touch /x 2>/dev/null || echo read-only
		cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/pids.max
	`, limit(32<<20), oci.WithUser("12:34"), oci.WithRootFSReadonly(), oci.WithCapabilities(nil), oci.WithPidsLimit(77), oci.WithMounts([]specs.Mount{
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"ro"}},
	}))
	b.same("container", strings.Join(strings.Fields(got), " "),
		"0::/ 1024 12 34 CapEff: 0000000000000000 Seccomp: 0 read-only 33554432 77")
}

// namesRepeat runs a container of the same name right after another.
func namesRepeat(b *box) {
	for i := range 3 {
		c := b.create("repeated", fmt.Sprintf("echo %d >/out/it", i)).start()
		if got := c.wait(); got != 0 {
			b.Errorf("exit status %d", got)
		}
		b.same("file of run "+fmt.Sprint(i), c.read("it"), fmt.Sprint(i))
		c.remove()
	}
}

// containersAreKept apart from the guest's own files.
func containersAreKept(b *box) {
	b.same("root", strings.Join(strings.Fields(b.run("kept", "ls /; mount | grep kuasar/agent || true")), " "),
		"bin dev etc out proc run sys")
}

func podIsSet(b *box) {
	got := b.run("pod", "hostname; cat /proc/sys/kernel/msgmax; cat /proc/sys/net/ipv4/ip_unprivileged_port_start; date +%s")
	fields := strings.Fields(got)
	b.same("pod", strings.Join(fields[:len(fields)-1], " "), "name-of-pod 16384 0")
	var now int64
	fmt.Sscan(fields[len(fields)-1], &now)
	if ago := time.Since(time.Unix(now, 0)); ago < -time.Second || ago > 10*time.Second {
		b.Errorf("the clock is behind by %v", ago)
	}
}

// modulesComeLater has a container ask the kernel for what it has not loaded.
func modulesComeLater(b *box) {
	c := b.create("modules", `
		ip link add br0 type bridge && ip link add v0 type veth peer name v1 && brctl addif br0 v0 && ls /sys/class/net/br0/brif >/out/members
		ip link add w0 type nonsense 2>/dev/null && exit 9
		brctl delif br0 v0; ip link del v0; ip link del br0
	`, oci.WithAddedCapabilities([]string{"CAP_NET_ADMIN"})).start()
	if got := c.wait(); got != 0 {
		b.Errorf("exit status %d", got)
	}
	b.same("members of the bridge", c.read("members"), "v0")
}

// podHasNetwork has a container answer the host, and ask it.
func podHasNetwork(b *box) {
	c := b.create("net", `
		ip addr show eth0 >/out/addr
		ip route >/out/route
		while true; do echo served | nc -l -p 80 || exit 1; done
	`).start()
	for _, ip := range []string{podIP, "[" + podIP6 + "]"} {
		b.same("answer of "+ip, b.ask(ip+":80"), "served\n")
	}
	for _, want := range []string{podIP + "/24", podIP6 + "/64", "mtu 1400"} {
		if got := c.read("addr"); !strings.Contains(got, want) {
			b.Errorf("%s is not in %s", want, got)
		}
	}
	if got := c.read("route"); !strings.Contains(got, "default via "+hostIP) {
		b.Errorf("no default route: %s", got)
	}
}

// ask dials from the host until somebody listens: the container has just started.
func (b *box) ask(address string) (text string) {
	b.Helper()
	b.must(inNamespace(b.host, func() error {
		for {
			c, err := net.DialTimeout("tcp", address, 10*time.Second)
			if b.ctx.Err() != nil {
				return fmt.Errorf("%w: %w", b.ctx.Err(), err)
			}
			if err != nil {
				continue
			}
			defer c.Close()
			read, err := io.ReadAll(c)
			text = string(read)
			return err
		}
	}))
	return text
}

func verbsRepeat(b *box) {
	g := b.agent.Guest()
	for range 2 {
		_, err := g.Setup(b.ctx, &api.SetupRequest{Hostname: "name-of-pod", Shares: []*api.Share{{Tag: vmm.Tag, Target: vmm.Seen}}, Entropy: []byte("entropy")})
		b.must(err)
		_, err = g.Unmount(b.ctx, &api.UnmountRequest{Target: "/run/none"})
		b.must(err)
	}
}

func verbsRefuse(b *box) {
	g := b.agent.Guest()
	_, err := g.Setup(b.ctx, &api.SetupRequest{Shares: []*api.Share{{Tag: "other", Target: vmm.Seen}}})
	if !errdefs.IsAlreadyExists(errgrpc.ToNative(err)) {
		b.Errorf("another share: %v", err)
	}
	_, err = g.Setup(b.ctx, &api.SetupRequest{Sysctls: map[string]string{"../sysrq-trigger": "c"}})
	if !errdefs.IsInvalidArgument(errgrpc.ToNative(err)) {
		b.Errorf("bad sysctl: %v", err)
	}
	soon, cancel := context.WithTimeout(b.ctx, 300*time.Millisecond)
	defer cancel()
	if _, err = g.Mount(soon, &api.MountRequest{Serial: "none", Type: "ext4", Target: "/run/disk"}); err == nil {
		b.Error("a disk that is not there was mounted")
	}
}

// isNobody holds that the VMM and its vsock device are a user of the pod's own,
// and that their directory is not theirs to change.
func isNobody(b *box) {
	program, err := Program("")
	b.must(err)
	if err := options(b.T).Unprivileged(program, vmm.TCG); err != nil {
		b.Skip(err)
	}
	saved, err := b.Save()
	b.must(err)
	var state struct{ Processes map[string]vmm.Process }
	b.must(json.Unmarshal(saved, &state))
	user := func(role string) uint32 {
		info, err := os.Stat(fmt.Sprintf("/proc/%d", state.Processes[role].Pid))
		b.must(err)
		return info.Sys().(*syscall.Stat_t).Uid
	}
	if vmm, vsock := user("vmm"), user("vsock"); vmm < 0x7000_0000 || vsock != vmm {
		b.Errorf("users %d and %d", vmm, vsock)
	}
	info, err := os.Stat(filepath.Join(b.dir, "vm"))
	b.must(err)
	if mode := info.Mode(); mode.Perm() != 0o770 || mode&os.ModeSticky == 0 || info.Sys().(*syscall.Stat_t).Uid != 0 {
		b.Errorf("mode of the directory: %v", mode)
	}
}

// image makes one of a file system with busybox in it.
func (b *box) image() string {
	b.Helper()
	root, image := b.TempDir(), filepath.Join(b.TempDir(), "image")
	busybox, err := os.ReadFile("/bin/busybox")
	b.must(err)
	b.must(os.Mkdir(filepath.Join(root, "bin"), 0o755))
	b.must(os.WriteFile(filepath.Join(root, "bin/sh"), busybox, 0o755))
	if out, err := exec.Command("mke2fs", "-q", "-t", "ext4", "-d", root, image, "16M").CombinedOutput(); err != nil {
		b.Fatalf("mke2fs: %v: %s", err, out)
	}
	return image
}

// rootIsDisk has a root file system that no process of the host's serves, and
// the next container another one, in the same slot.
func rootIsDisk(b *box) {
	images := []string{b.image(), b.image()}
	for i, image := range images {
		rootfs := []mount.Mount{{Type: "ext4", Source: image, Options: []string{"loop"}}}
		for range 2 { // what it writes is there for the next
			c := b.createOn(fmt.Sprint("disk-", i), "grep ' / ' /proc/mounts >/out/mount; echo x >>/count; sync; cat /count >/out/count", rootfs).start()
			if got := c.wait(); got != 0 {
				b.Errorf("exit status %d", got)
			}
			if got := c.read("mount"); !strings.Contains(got, "ext4") || !strings.Contains(got, "/dev/vd") {
				b.Errorf("root is %q", got)
			}
			c.remove()
		}
		mounts, err := os.ReadFile("/proc/self/mounts")
		b.must(err)
		if strings.Contains(string(mounts), image) {
			b.Error("the host has mounted it, too")
		}
	}
	// With all slots taken the host shares it.
	for i := range vmm.Defaults().Slots {
		b.createOn(fmt.Sprint("full-", i), "exec sleep 1000", []mount.Mount{{Type: "ext4", Source: b.image(), Options: []string{"loop"}}})
	}
	c := b.createOn("shared", "grep ' / ' /proc/mounts >/out/mount", []mount.Mount{{Type: "ext4", Source: images[0], Options: []string{"loop"}}}).start()
	if got := c.wait(); got != 0 {
		b.Errorf("exit status %d", got)
	}
	if got := c.read("mount"); strings.Contains(got, "/dev/vd") {
		b.Errorf("root is %q", got)
	}
}

// volumesAreDisks has block devices of the host be a container's, one of them to
// read only.
func volumesAreDisks(b *box) {
	var devices []specs.LinuxDevice
	rules := []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}
	images := make([]string, 2)
	for i, access := range []string{"rwm", "r"} {
		images[i] = filepath.Join(b.TempDir(), "image")
		b.must(os.WriteFile(images[i], append([]byte(fmt.Sprintln("volume", i)), make([]byte, 1<<20)...), 0o600))
		loop, err := mount.AttachLoopDevice(images[i])
		b.must(err)
		b.Cleanup(func() { b.must(mount.DetachLoopDevice(loop)) })
		var st unix.Stat_t
		b.must(unix.Stat(loop, &st))
		major, minor := int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev))
		devices = append(devices, specs.LinuxDevice{Path: fmt.Sprintf("/dev/volume%d", i), Type: "b", Major: major, Minor: minor})
		rules = append(rules, specs.LinuxDeviceCgroup{Allow: true, Type: "b", Major: &major, Minor: &minor, Access: access})
	}
	volumes := func(_ context.Context, _ oci.Client, _ *containers.Container, s *oci.Spec) error {
		s.Linux.Devices = append(s.Linux.Devices, devices...)
		s.Linux.Resources.Devices = rules
		return nil
	}
	c := b.create("volumes", `
		head -n1 /dev/volume0 >/out/first
		head -n1 /dev/volume1 >/out/second
		echo written | dd of=/dev/volume0 conv=notrunc,fsync || exit 1
		echo written | dd of=/dev/volume1 conv=notrunc 2>/out/refused && exit 2
		exit 0
	`, volumes).start()
	if got := c.wait(); got != 0 {
		b.Errorf("exit status %d", got)
	}
	b.same("first volume", c.read("first"), "volume 0")
	b.same("second volume", c.read("second"), "volume 1")
	if got := c.read("refused"); !strings.Contains(got, "not permitted") && !strings.Contains(got, "Read-only") {
		b.Errorf("writing to the second: %q", got)
	}
	c.remove()
	written, err := os.ReadFile(images[0])
	b.must(err)
	b.same("first volume on the host", strings.SplitN(string(written), "\n", 2)[0], "written")

	devices[0].Minor += 1000
	missing := &specs.Spec{Process: &specs.Process{}, Linux: &specs.Linux{Devices: devices[:1]}}
	if _, err := b.Prepare(b.ctx, &sandbox.Container{ID: "missing", Spec: missing}); !errdefs.IsFailedPrecondition(err) {
		b.Errorf("a device that the host has not: %v", err)
	}
}
