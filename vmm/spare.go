package vmm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/containerd-kuasar/containerd-kuasar/internal/cgroup"
	"github.com/containerd-kuasar/containerd-kuasar/internal/failpoint"
	"github.com/containerd-kuasar/containerd-kuasar/internal/pidfd"
	"github.com/containerd-kuasar/containerd-kuasar/internal/record"
	"github.com/containerd-kuasar/containerd-kuasar/internal/thread"
	"github.com/containerd-kuasar/containerd-kuasar/sandbox/host"
)

var (
	fpSpareMade   = failpoint.New("vmm/pool/made")
	fpSpareNoted  = failpoint.New("vmm/pool/noted")
	fpSparePlaced = failpoint.New("vmm/pool/placed")
	fpSpareLoaded = failpoint.New("vmm/pool/loaded")
	fpSpareEnded  = failpoint.New("vmm/pool/ended")
	fpSpareTaken  = failpoint.New("vmm/pool/taken")
	fpSpareMoved  = failpoint.New("vmm/pool/moved")
	fpSpareNamed  = failpoint.New("vmm/pool/named")
)

// spare is a clone that no pod has yet.
type spare struct {
	from    *saved
	kind    *kind // that it is ready for; guarded by pool.mu
	reaper  *pidfd.Reaper
	group   string // cgroup
	name    string
	home    string // directory: the record of the process, and dir
	dir     string // a file system, which becomes the pod's; see makeDir
	console *console
	proc    *proc // nil before it was launched

	mu    sync.Mutex
	owner func(pidfd.Exit) // is told of the end of the process
}

// load makes the machine. On error the caller ends it.
func (s *spare) load(ctx context.Context, of shape) (err error) {
	if err := os.MkdirAll(s.home, 0o700); err != nil {
		return err
	}
	if err := makeDir(s.dir, ownerOf(s.name)); err != nil {
		return err
	}
	fpSpareMade.Hit()
	if s.console, err = newConsole(); err != nil {
		return err
	}
	c := of.config
	c.ID, c.Dir, c.Console, c.Launch = s.name, s.dir, s.console.out, func(_ context.Context, c Command) error {
		c.as = s.as(of.config, c.Args[0])
		return s.launch(c)
	}
	c.Process = func() Process { return s.proc.Process }
	err = thread.Do(func() error {
		// It is this thread that copies the memory.
		if err := unix.Setpriority(unix.PRIO_PROCESS, 0, moldNice); err != nil {
			return err
		}
		return of.driver.Load(ctx, c, s.from.dir)
	})
	if err != nil {
		return fmt.Errorf("%w%s", err, tail(s.log()))
	}
	fpSpareLoaded.Hit()
	return nil
}

func (s *spare) log() string { return filepath.Join(s.dir, roleVMM+".log") }

// launch starts the VMM, in a network namespace that has nothing: the pod's taps
// it gets as descriptors.
func (s *spare) launch(c Command) error {
	out, err := os.OpenFile(s.log(), os.O_CREATE|os.O_WRONLY|os.O_TRUNC|os.O_APPEND|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	defer out.Close()
	c.Dir = s.dir
	return launch(c, emptyNetNS, out, func(p Process) (err error) {
		if err := record.Write(filepath.Join(s.home, moldFile), p); err != nil {
			return err
		}
		fpSpareNoted.Hit()
		if err := cgroup.Place(p.Pid, s.group); err != nil {
			return fmt.Errorf("move to cgroup %s: %w", s.group, err)
		}
		fpSparePlaced.Hit()
		if err := prioritize(p, moldNice); err != nil {
			return err
		}
		s.proc, err = follow(s.reaper, p, s.ended)
		return err
	})
}

// prioritize sets the priority of a process with all of its threads: it is the
// only one of its process group.
func prioritize(p Process, nice int) error {
	if err := unix.Setpriority(unix.PRIO_PGRP, p.Pid, nice); err != nil {
		return fmt.Errorf("set the priority of process %d: %w", p.Pid, err)
	}
	return nil
}

func (s *spare) ended(e pidfd.Exit) {
	s.mu.Lock()
	owner := s.owner
	s.mu.Unlock()
	owner(e)
}

// give makes another the one who is told of the end of the process. It is an
// error if that may have been before.
func (s *spare) give(owner func(pidfd.Exit)) error {
	s.mu.Lock()
	s.owner = owner
	s.mu.Unlock()
	if !s.lives() {
		return fmt.Errorf("the machine from the pool ended with status %d: %w", s.proc.exit.Status, errdefs.ErrFailedPrecondition)
	}
	return nil
}

func (s *spare) lives() bool {
	select {
	case <-s.proc.done:
		return false
	default:
		return true
	}
}

// kill has the machine end, and does not wait for that.
func (s *spare) kill() { _ = pidfd.Signal(s.proc.file, unix.SIGKILL) }

// end leaves nothing of the machine.
func (s *spare) end(ctx context.Context) error {
	if s.console != nil {
		s.console.close()
	}
	if s.proc != nil {
		if err := s.proc.kill(ctx); err != nil {
			return err
		}
	}
	fpSpareEnded.Hit()
	return removeSpare(s.home)
}

// removeSpare removes the directory of a machine that is gone, or is a pod's.
func removeSpare(home string) error {
	if err := host.Unmount(filepath.Join(home, vmDir)); err != nil {
		return err
	}
	return os.RemoveAll(home)
}

// as is the user of the machine: as a pod's, see pod.as, which also says why there
// is none.
func (s *spare) as(c Config, program string) user {
	groups, err := Options{Kernel: c.Kernel, Initrd: c.Initrd}.unprivileged(program, c.Accel)
	if err != nil {
		return user{}
	}
	return user{userOf(s.name), groups}
}

// takeSpare makes a machine from the pool the pod's. A daemon that dies meanwhile
// has not started the pod: the next one ends the machine, since it finds it in the
// pool's directory, in the pod's record, or in both.
func (p *pod) takeSpare(ctx context.Context, t *trial) error {
	s := t.spare
	p.mu.Lock()
	p.procs[roleVMM], p.state.Processes[roleVMM], p.spare = s.proc, s.proc.Process, s.name
	p.mu.Unlock()
	err := s.give(func(e pidfd.Exit) { p.ended(t, roleVMM, e) })
	if err == nil {
		err = p.saved(ctx)
	}
	if err == nil {
		fpSpareTaken.Hit()
		if err = cgroup.Place(s.proc.Pid, p.group); err != nil {
			err = fmt.Errorf("move to cgroup %s: %w", p.group, err)
		}
	}
	if err == nil {
		fpSpareMoved.Hit()
		// The machine's sockets and its log are in there, and it looks there for
		// the pod's. To move the mount is not possible where it is shared.
		if err = os.Mkdir(p.vm, 0o700); err == nil || errors.Is(err, fs.ErrExist) {
			err = bind(s.dir, p.vm, unix.MountAttr{Propagation: unix.MS_PRIVATE}, 0)
		}
	}
	if err == nil {
		fpSpareNamed.Hit()
		err = prioritize(s.proc.Process, 0)
	}
	if err = errors.Join(err, removeSpare(s.home)); err != nil {
		return fmt.Errorf("take a machine from the pool: %w", err)
	}
	return nil
}
