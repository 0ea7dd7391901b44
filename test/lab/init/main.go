// init is the first process of the lab's machine. It makes a root file system
// of the host's, which is not changed, runs one job and switches the machine off.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/containerd-kuasar/containerd-kuasar/task/guest"
	"github.com/containerd-kuasar/containerd-kuasar/test/lab/job"
)

func main() {
	var err error
	if os.Getpid() == 1 {
		err = first()
	} else {
		err = service()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "lab:", err)
	}
	if os.Getpid() == 1 || err != nil {
		_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	}
}

func first() error {
	j, err := read("/" + job.File)
	if err != nil {
		return err
	}
	if err := boot(j); err != nil {
		return err
	}
	if j.Systemd {
		return systemd(j)
	}
	return run(j)
}

// service runs the job for systemd.
func service() error {
	j, err := read(filepath.Join(unitDir, job.File))
	if err != nil {
		return err
	}
	return errors.Join(run(j), unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF))
}

func read(path string) (j job.Job, err error) {
	b, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(b, &j)
	}
	return j, err
}

// boot ends in the root file system that the job has.
func boot(j job.Job) error {
	modules, err := guest.NewModules(guest.ModuleDir)
	if err != nil {
		return err
	}
	if err := mount("devtmpfs", "/dev", "devtmpfs", 0, ""); err != nil {
		return err
	}
	if err := modules.LoadAll(); err != nil {
		return err
	}
	for _, m := range [][4]string{
		{job.Tag, "/host", "virtiofs", ""},
		{"tmpfs", "/changes", "tmpfs", "mode=0755"},
	} {
		if err := mount(m[0], m[1], m[2], 0, m[3]); err != nil {
			return err
		}
	}
	if err := errors.Join(os.Mkdir("/changes/upper", 0o755), os.Mkdir("/changes/work", 0o755)); err != nil {
		return err
	}
	if err := mount("overlay", "/root", "overlay", 0, "lowerdir=/host,upperdir=/changes/upper,workdir=/changes/work"); err != nil {
		return err
	}
	if err := mounts("/root", j.Cgroup); err != nil {
		return err
	}
	if j.Systemd { // it needs the program later
		if err := install(j); err != nil {
			return err
		}
	}
	if err := errors.Join(os.Chdir("/root"), unix.Mount(".", "/", "", unix.MS_MOVE, ""), unix.Chroot("."), os.Chdir("/")); err != nil {
		return fmt.Errorf("change the root: %w", err)
	}
	return errors.Join(os.Chmod(job.Temporary, os.ModeSticky|0o777), unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, ""), loopback())
}

func mount(source, target, kind string, flags uintptr, data string) error {
	if err := os.MkdirAll(target, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(source, target, kind, flags, data); err != nil {
		return fmt.Errorf("mount %s on %s: %w", kind, target, err)
	}
	return nil
}

// controllers of cgroup v1, as hosts have them mounted.
var controllers = []string{"cpuset", "cpu,cpuacct", "blkio", "memory", "devices", "freezer", "net_cls,net_prio", "perf_event", "hugetlb", "pids"}

func mounts(root, version string) error {
	in := func(path string) string { return filepath.Join(root, path) }
	const safe = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	errs := []error{
		mount("proc", in("/proc"), "proc", safe, ""),
		mount("sysfs", in("/sys"), "sysfs", safe, ""),
		mount("devtmpfs", in("/dev"), "devtmpfs", unix.MS_NOSUID, "mode=0755"),
		mount("devpts", in("/dev/pts"), "devpts", unix.MS_NOSUID|unix.MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620,gid=5"),
		mount("tmpfs", in("/dev/shm"), "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=1777"),
		mount("tmpfs", in("/run"), "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755"),
		mount("tmpfs", in(job.Temporary), "tmpfs", 0, "mode=1777"),
	}
	const groups = "/sys/fs/cgroup"
	if version == "v1" {
		errs = append(errs, mount("tmpfs", in(groups), "tmpfs", safe, "mode=0755"))
		for _, c := range controllers {
			errs = append(errs, mount("cgroup", in(filepath.Join(groups, c)), "cgroup", safe, c))
		}
	} else {
		errs = append(errs, mount("cgroup2", in(groups), "cgroup2", safe, "nsdelegate"), share(in(groups)))
	}
	return errors.Join(errs...)
}

// share gives the groups below one all its controllers, as hosts' first
// processes do.
func share(group string) error {
	names, err := os.ReadFile(filepath.Join(group, "cgroup.controllers"))
	if err != nil {
		return err
	}
	all := "+" + strings.Join(strings.Fields(string(names)), " +")
	return os.WriteFile(filepath.Join(group, "cgroup.subtree_control"), []byte(all), 0)
}

// loopback sets lo up; everything else is the job's.
func loopback() error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	r, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	r.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, r)
}

// run runs the job and says how it ended.
func run(j job.Job) error {
	output, err := port(job.Output)
	if err != nil {
		return err
	}
	status, err := port(job.Status)
	if err != nil {
		return err
	}
	code, err := execute(j, output)
	if err != nil {
		fmt.Fprintln(output, "lab:", err)
		code = 127
	}
	_, err = fmt.Fprintln(status, code)
	return errors.Join(err, output.Close(), status.Close())
}

// port opens a virtio port by name.
func port(name string) (*os.File, error) {
	const class = "/sys/class/virtio-ports"
	entries, err := os.ReadDir(class)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		b, err := os.ReadFile(filepath.Join(class, e.Name(), "name"))
		if err == nil && strings.TrimSpace(string(b)) == name {
			return os.OpenFile(filepath.Join("/dev", e.Name()), os.O_WRONLY, 0)
		}
	}
	return nil, fmt.Errorf("the machine has no virtio port %s", name)
}

// execute runs the job's program, and reaps what it leaves.
func execute(j job.Job, output *os.File) (int, error) {
	program := j.Args[0]
	if !strings.Contains(program, "/") {
		for dir := range strings.SplitSeq(path(j.Env), ":") {
			if unix.Access(filepath.Join(dir, program), unix.X_OK) == nil {
				program = filepath.Join(dir, program)
				break
			}
		}
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		return 0, err
	}
	defer null.Close()
	p, err := os.StartProcess(program, j.Args, &os.ProcAttr{
		Dir: j.Dir, Env: j.Env, Files: []*os.File{null, output, output}, Sys: &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return 0, err
	}
	for {
		var s unix.WaitStatus
		pid, err := unix.Wait4(-1, &s, 0, nil)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return 0, err
		case pid != p.Pid:
		case s.Signaled():
			return 128 + int(s.Signal()), nil
		default:
			return s.ExitStatus(), nil
		}
	}
}

func path(env []string) string {
	for _, e := range env {
		if dirs, ok := strings.CutPrefix(e, "PATH="); ok {
			return dirs
		}
	}
	return "/usr/bin:/bin"
}
