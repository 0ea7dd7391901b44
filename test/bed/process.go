package bed

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Process is one process as /proc shows it.
type Process struct {
	Pid, Parent int
	Name        string   // of the command, at most 15 bytes
	Args        []string // empty for kernel threads and zombies
	State       byte     // 'Z' for a zombie
	Dir         string   // it works in; empty for a zombie
}

func (p Process) String() string {
	if len(p.Args) == 0 {
		return fmt.Sprintf("%d [%s] %c", p.Pid, p.Name, p.State)
	}
	return fmt.Sprintf("%d %s", p.Pid, strings.Join(p.Args, " "))
}

// Processes lists all that this pid namespace has, by pid.
func Processes() ([]Process, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	var all []Process
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		if p, err := readProcess(pid); err == nil { // else it ended meanwhile
			all = append(all, p)
		}
	}
	slices.SortFunc(all, func(a, b Process) int { return a.Pid - b.Pid })
	return all, nil
}

func readProcess(pid int) (Process, error) {
	dir := filepath.Join("/proc", strconv.Itoa(pid))
	stat, err := os.ReadFile(filepath.Join(dir, "stat"))
	if err != nil {
		return Process{}, err
	}
	// pid (name) state ppid …; the name may have spaces and parentheses.
	open, end := bytes.IndexByte(stat, '('), bytes.LastIndexByte(stat, ')')
	if open < 0 || end < open {
		return Process{}, fmt.Errorf("read %s/stat: malformed", dir)
	}
	fields := strings.Fields(string(stat[end+1:]))
	if len(fields) < 2 {
		return Process{}, fmt.Errorf("read %s/stat: malformed", dir)
	}
	parent, err := strconv.Atoi(fields[1])
	if err != nil {
		return Process{}, fmt.Errorf("read %s/stat: %w", dir, err)
	}
	args, err := os.ReadFile(filepath.Join(dir, "cmdline"))
	if err != nil {
		return Process{}, err
	}
	p := Process{Pid: pid, Parent: parent, Name: string(stat[open+1 : end]), State: fields[0][0]}
	p.Dir, _ = os.Readlink(filepath.Join(dir, "cwd"))
	if args = bytes.TrimRight(args, "\x00"); len(args) > 0 {
		p.Args = strings.Split(string(args), "\x00")
	}
	return p, nil
}

// Worker returns the pid of the node's worker of this bed, and 0 if it has
// none.
func (b *Bed) Worker() (int, error) {
	all, err := Processes()
	if err != nil {
		return 0, err
	}
	for _, p := range all {
		if p.isWorker() && strings.Contains(strings.Join(p.Args, " "), b.Dir) {
			return p.Pid, nil
		}
	}
	return 0, nil
}

// of says whether the process belongs to the bed: some do not name its directory
// but work there.
func (p Process) of(b *Bed) bool {
	return strings.Contains(strings.Join(p.Args, " "), b.Dir) || strings.HasPrefix(p.Dir, b.Dir+"/")
}

// Machine returns the processes of a pod's virtual machine, by name.
func (b *Bed) Machine(pod string) (map[string]int, error) {
	all, err := Processes()
	if err != nil {
		return nil, err
	}
	machine := map[string]int{}
	for _, p := range all {
		if strings.HasPrefix(p.Dir, filepath.Join(b.State(), "kuasar/vmm", pod)+"/") && len(p.Args) > 0 {
			machine[filepath.Base(p.Args[0])] = p.Pid
		}
	}
	return machine, nil
}

// Helpers counts the processes that hold pods and do not belong to them, by
// kind: "shim", "pause", "worker".
func Helpers() (map[string]int, error) {
	all, err := Processes()
	if err != nil {
		return nil, err
	}
	count := make(map[string]int)
	for _, p := range all {
		if kind := p.helper(); kind != "" {
			count[kind]++
		}
	}
	return count, nil
}

func (p Process) helper() string {
	switch {
	case len(p.Args) == 0:
		return ""
	case strings.HasPrefix(filepath.Base(p.Args[0]), "containerd-shim"):
		return "shim"
	case filepath.Base(p.Args[0]) == "pause" || p.Name == "pause" || slices.Contains(p.Args, "pause"):
		return "pause"
	case p.isWorker():
		return "worker"
	}
	return ""
}

func (p Process) isWorker() bool {
	return len(p.Args) > 1 && filepath.Base(p.Args[0]) == "kuasar-task" && p.Args[1] == "serve"
}

// AwaitExit waits until the process has ended. A pid that does not exist has
// ended.
func AwaitExit(ctx context.Context, pid int) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("wait for pid %d: %w", pid, err)
	}
	defer unix.Close(fd)
	wake, err := newWake(ctx)
	if err != nil {
		return fmt.Errorf("wait for pid %d: %w", pid, err)
	}
	defer wake.close()
	for {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}, {Fd: int32(wake.fd), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, -1); err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("wait for pid %d: %w", pid, err)
		}
		if fds[0].Revents != 0 {
			return nil
		}
		if ctx.Err() != nil {
			return fmt.Errorf("wait for pid %d: %w", pid, ctx.Err())
		}
	}
}

// wake is a file descriptor that becomes readable when a context ends.
type wake struct {
	fd   int
	stop func() bool
}

func newWake(ctx context.Context) (*wake, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _, _ = unix.Write(fd, []byte{1, 0, 0, 0, 0, 0, 0, 0}) })
	return &wake{fd, stop}, nil
}

// close leaves the descriptor to the context's end if that is under way.
func (w *wake) close() {
	if w.stop() {
		unix.Close(w.fd)
	}
}
