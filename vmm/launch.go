package vmm

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/containerd-kuasar/containerd-kuasar/internal/failpoint"
	"github.com/containerd-kuasar/containerd-kuasar/internal/pidfd"
	"github.com/containerd-kuasar/containerd-kuasar/internal/thread"
)

var (
	fpFork  = failpoint.New("vmm/launch/fork")
	fpAdmit = failpoint.New("vmm/launch/admit")
	fpGo    = failpoint.New("vmm/launch/go")
)

// Command is a process to launch.
type Command struct {
	Args []string // Args[0] is the path of the program

	// Dir is where it is started, empty for the root.
	Dir string

	// Files are its descriptors from 3 on. The caller closes them.
	Files []*os.File

	// Capabilities are those that it has, as far as this daemon has them; it
	// never gets another one.
	Capabilities []int

	as user
}

// gate is what a process is before it is admitted: a shell that becomes the
// program, and keeps its process id, when it is told to. If nobody does, because
// this daemon died, it ends. Thus no process is ever lost that is not recorded,
// and none runs outside its cgroup.
var gate = []string{"/bin/sh", "-c", `read -r go && exec "$@" </dev/null`, "gate"}

// launch runs a command after admit has returned, which records its process and
// puts it where it belongs. If admit fails it never runs. out becomes its stdout
// and stderr. It is started in the network
// namespace at netns, empty for ours; or see emptyNetNS.
func launch(c Command, netns string, out *os.File, admit func(Process) error) error {
	if err := executable(c.Args[0]); err != nil {
		return fmt.Errorf("launch %s: %w", c.Args[0], err)
	}
	in, open, err := os.Pipe()
	if err != nil {
		return err
	}
	defer open.Close()
	pid, err := start(c, netns, in, out)
	in.Close()
	if err != nil {
		return fmt.Errorf("launch %s: %w", c.Args[0], err)
	}
	fpFork.Hit()
	start, err := pidfd.StartTime(pid)
	if err == nil {
		err = admit(Process{Pid: pid, Start: start})
	}
	if err != nil {
		return errors.Join(fmt.Errorf("launch %s: %w", c.Args[0], err), refuse(pid))
	}
	fpAdmit.Hit()
	if _, err := open.WriteString("go\n"); err != nil {
		return fmt.Errorf("launch %s: %w", c.Args[0], err) // it was killed meanwhile
	}
	fpGo.Hit()
	return nil
}

// executable finds what the gate could not say well.
func executable(path string) error {
	err := unix.Access(path, unix.X_OK)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w: %w", err, errdefs.ErrNotFound)
	case err != nil:
		return fmt.Errorf("%w: %w", err, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// start forks in the network namespace and with the command's capabilities, on a
// thread that ends there.
func start(c Command, netns string, in, out *os.File) (pid int, err error) {
	err = thread.Do(func() error {
		if err := enter(netns); err != nil {
			return err
		}
		if err := goTo(cmp.Or(c.Dir, "/")); err != nil {
			return err
		}
		if err := confine(c.Capabilities, c.as); err != nil {
			return err
		}
		pid, err = fork(c, in, out)
		return err
	})
	return pid, err
}

// emptyNetNS stands for a network namespace of the process's own, which has
// nothing.
const emptyNetNS = "empty"

func enter(netns string) error {
	switch netns {
	case "":
		return nil
	case emptyNetNS:
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make a network namespace: %w", err)
		}
		return nil
	}
	f, err := os.Open(netns)
	if err != nil {
		return fmt.Errorf("open network namespace: %w", err)
	}
	defer f.Close()
	if err := unix.Setns(int(f.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter network namespace %s: %w", netns, err)
	}
	return nil
}

// goTo changes the working directory of this thread alone, as root: another user
// need not be able to go there, only to have it.
func goTo(dir string) error {
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("have a working directory of its own: %w", err)
	}
	if err := unix.Chdir(dir); err != nil {
		return &os.PathError{Op: "chdir", Path: dir, Err: err}
	}
	return nil
}

// fork starts the gate in a session of its own, with an environment that has
// nothing of the daemon's.
func fork(c Command, in, out *os.File) (int, error) {
	p, err := os.StartProcess(gate[0], append(slices.Clone(gate), c.Args...), &os.ProcAttr{
		Env:   environ(),
		Files: append([]*os.File{in, out, out}, c.Files...),
		Sys:   &syscall.SysProcAttr{Setsid: true, Credential: c.as.credential()},
	})
	if err != nil {
		return 0, err
	}
	pid := p.Pid // Release forgets it
	return pid, p.Release()
}

// environ has nothing of the daemon's but PATH.
func environ() []string {
	return slices.DeleteFunc(os.Environ(), func(s string) bool { return !strings.HasPrefix(s, "PATH=") })
}

// RunConfined runs a command that is no pod's to its end, as confined as theirs
// and in a network namespace of its own. It is killed when ctx is done, and when
// this daemon dies. out takes what it prints.
func RunConfined(ctx context.Context, c Command, out io.Writer) error {
	// Its parent, for the signal that it gets in the end, is the thread.
	return thread.Do(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make a network namespace: %w", err)
		}
		if err := confine(c.Capabilities, user{}); err != nil {
			return err
		}
		cmd := exec.CommandContext(ctx, c.Args[0], c.Args[1:]...)
		cmd.Dir, cmd.Env, cmd.ExtraFiles = cmp.Or(c.Dir, "/"), environ(), c.Files
		cmd.Stdout, cmd.Stderr = out, out
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: unix.SIGKILL}
		return cmd.Run()
	})
}

// refuse ends a process that was not admitted: nobody follows it.
func refuse(pid int) error {
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		return err
	}
	for {
		if _, err := unix.Wait4(pid, nil, 0, nil); err != unix.EINTR {
			return err
		}
	}
}
