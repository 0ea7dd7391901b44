package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/containerd-kuasar/containerd-kuasar/guest"
	"github.com/containerd-kuasar/containerd-kuasar/test/lab/job"
)

// modules that the machine has; what can be loaded later on a host must be there
// from the beginning.
var modules = []string{
	"virtio_pci", "virtio_console", "virtiofs", "overlay",
	"kvm_amd", "vhost_vsock", "vhost_net", "tun",
	"veth", "bridge", "br_netfilter", "nf_tables", "nft_compat", "nft_chain_nat",
	"iptable_nat", "iptable_filter", "ip6table_nat", "ip6table_filter", "ipt_REJECT",
	"xt_MASQUERADE", "xt_addrtype", "xt_comment", "xt_conntrack", "xt_mark", "xt_multiport", "xt_nat", "xt_tcpudp",
	"sch_ingress", "cls_u32", "cls_matchall", "act_mirred",
	"erofs", "ext4", "loop", "autofs4",
}

const (
	kernelPackage = "build/kernel" // see hack/guest
	out           = "build/lab"
)

type machine struct {
	memory, cpus int
	job          job.Job
}

// run returns the job's exit status.
func (m *machine) run(ctx context.Context) (int, error) {
	if err := m.build(ctx); err != nil {
		return 0, err
	}
	dir, err := os.MkdirTemp("", "lab")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	initrd, err := m.initrd(dir)
	if err != nil {
		return 0, err
	}
	// One mount, without those below it: an emptier /proc, /sys, /dev and /run.
	root := filepath.Join(dir, "root")
	if err := os.Mkdir(root, 0o755); err != nil {
		return 0, err
	}
	if err := unix.Mount("/", root, "", unix.MS_BIND, ""); err != nil {
		return 0, fmt.Errorf("bind the root: %w", err)
	}
	defer func() { _ = unix.Unmount(root, unix.MNT_DETACH) }()
	socket := filepath.Join(dir, "fs")
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	served, err := serve(ctx, root, socket)
	if err != nil {
		return 0, err
	}
	status, err := m.boot(ctx, dir, initrd, socket)
	cancel()
	return status, errors.Join(err, <-served)
}

// build makes the kernel and the initramfs, without the job.
func (m *machine) build(ctx context.Context) error {
	if err := os.MkdirAll(out, 0o755); err != nil {
		return err
	}
	c := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", out+"/init", "./test/lab/init")
	c.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := c.CombinedOutput(); err != nil {
		return fmt.Errorf("build the machine's first process: %w: %s", err, text)
	}
	_, err := guest.Build(guest.Config{Package: kernelPackage, Agent: out + "/init", Out: out, Modules: modules})
	return err
}

// initrd writes the initramfs with the job.
func (m *machine) initrd(dir string) (string, error) {
	text, err := json.Marshal(m.job)
	if err != nil {
		return "", err
	}
	b, err := os.ReadFile(filepath.Join(out, guest.Initramfs))
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "initramfs")
	return path, os.WriteFile(path, append(b, guest.Append(job.File, text)...), 0o600)
}

// virtiofsds are where it is; see package vmm.
var virtiofsds = []string{"/usr/libexec/virtiofsd", "/usr/lib/qemu/virtiofsd"}

// serve runs virtiofsd, which ends with the machine.
func serve(ctx context.Context, root, socket string) (<-chan error, error) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return nil, err
	}
	defer l.Close()
	l.SetUnlinkOnClose(false)
	f, err := l.File()
	if err != nil {
		return nil, err
	}
	defer f.Close()
	program, err := exec.LookPath("virtiofsd")
	for _, path := range virtiofsds {
		if _, serr := os.Stat(path); err != nil && serr == nil {
			program, err = path, nil
		}
	}
	if err != nil {
		return nil, fmt.Errorf("%w: run hack/install", err)
	}
	c := command(ctx, program, "--fd=3", "-o", "source="+root, "-o", "cache=always", "-o", "sandbox=chroot", "-o", "xattr")
	c.ExtraFiles = []*os.File{f}
	var text bytes.Buffer
	c.Stdout, c.Stderr = &text, &text
	if err := c.Start(); err != nil {
		return nil, err
	}
	done := make(chan error, 1)
	go func() {
		err := c.Wait()
		if ctx.Err() != nil {
			err = nil
		}
		if err != nil {
			err = fmt.Errorf("virtiofsd: %w: %s", err, tail(text.Bytes()))
		}
		done <- err
	}()
	return done, nil
}

// command is killed when this process dies.
func command(ctx context.Context, program string, args ...string) *exec.Cmd {
	c := exec.CommandContext(ctx, program, args...)
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return c
}

// boot runs the machine until it is off.
func (m *machine) boot(ctx context.Context, dir, initrd, socket string) (int, error) {
	console, err := os.OpenFile(filepath.Join(dir, "console"), os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return 0, err
	}
	defer console.Close()
	c := command(ctx, "qemu-system-x86_64", m.args(initrd, socket)...)
	var g errgroup.Group
	var status bytes.Buffer
	for _, to := range []io.Writer{os.Stdout, &status} { // descriptors 3 and 4
		r, w, err := os.Pipe()
		if err != nil {
			return 0, err
		}
		c.ExtraFiles = append(c.ExtraFiles, w)
		defer w.Close()
		g.Go(func() error {
			defer r.Close()
			_, err := io.Copy(to, r)
			return err
		})
	}
	c.ExtraFiles = append(c.ExtraFiles, console) // 5
	var text bytes.Buffer
	c.Stderr = &text
	err = c.Start()
	for _, f := range c.ExtraFiles[:2] {
		f.Close()
	}
	if err == nil {
		err = c.Wait()
	}
	err = errors.Join(err, g.Wait())
	if cause := context.Cause(ctx); cause != nil {
		err = fmt.Errorf("the machine was ended: %w", cause)
	}
	code, perr := strconv.Atoi(strings.TrimSpace(status.String()))
	if err == nil && perr != nil {
		err = errors.New("the machine ended before its job")
	}
	if err != nil {
		said, _ := os.ReadFile(console.Name())
		return 0, fmt.Errorf("%w: %s; its console says:\n%s", err, tail(text.Bytes()), tail(said))
	}
	return code, nil
}

func (m *machine) args(initrd, socket string) []string {
	memory := strconv.Itoa(m.memory) + "M"
	return []string{
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-machine", "q35,memory-backend=mem,hpet=off,vmport=off,graphics=off", "-bios", "qboot.rom",
		"-accel", "tcg,thread=multi,tb-size=512", "-cpu", "max", "-smp", strconv.Itoa(m.cpus),
		"-m", memory, "-object", "memory-backend-memfd,id=mem,size=" + memory + ",share=on",
		"-chardev", "socket,id=fs,path=" + socket, "-device", "vhost-user-fs-pci,chardev=fs,tag=" + job.Tag + ",queue-size=1024",
		"-device", "virtio-serial-pci",
		"-add-fd", "set=3,fd=3", "-chardev", "file,id=output,path=/dev/fdset/3,append=on", "-device", "virtserialport,chardev=output,name=" + job.Output,
		"-add-fd", "set=4,fd=4", "-chardev", "file,id=status,path=/dev/fdset/4,append=on", "-device", "virtserialport,chardev=status,name=" + job.Status,
		"-add-fd", "set=5,fd=5", "-chardev", "file,id=console,path=/dev/fdset/5,append=on", "-serial", "chardev:console",
		"-kernel", filepath.Join(out, guest.Kernel), "-initrd", initrd,
		"-append", "console=ttyS0 quiet panic=-1 no_timer_check mitigations=off " + m.hierarchy(),
	}
}

func (m *machine) hierarchy() string {
	if m.job.Cgroup == "v1" {
		return "systemd.unified_cgroup_hierarchy=0"
	}
	return "cgroup_no_v1=all systemd.unified_cgroup_hierarchy=1"
}

// tail is the end of what a program said.
func tail(b []byte) []byte {
	const size = 4096
	return bytes.TrimSpace(b[max(0, len(b)-size):])
}
