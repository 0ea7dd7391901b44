package pidfd

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// stat is what we read of proc_pid_stat(5).
type stat struct {
	state byte
	start uint64          // field 22
	exit  unix.WaitStatus // field 52: 0 for readers without ptrace access
}

func readStat(pid int) (stat, error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	// A process reaped between open and read gives ESRCH.
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return stat{}, fmt.Errorf("no such process: %w", errdefs.ErrNotFound)
	}
	if err != nil {
		return stat{}, err
	}
	return parseStat(b)
}

// parseStat counts fields from the last parenthesis, since a command's name
// may hold blanks and parentheses.
func parseStat(b []byte) (stat, error) {
	const state, start, exit = 3, 22, 52 // numbered as in the manual
	i := bytes.LastIndexByte(b, ')')
	if i < 0 {
		return stat{}, errors.New("malformed stat file: no command")
	}
	fields := bytes.Fields(b[i+1:])
	if len(fields) < exit-state+1 {
		return stat{}, fmt.Errorf("malformed stat file: %d fields after the command", len(fields))
	}
	var s stat
	var err error
	s.state = fields[0][0]
	if s.start, err = strconv.ParseUint(string(fields[start-state]), 10, 64); err != nil {
		return stat{}, fmt.Errorf("malformed stat file: start time: %w", err)
	}
	code, err := strconv.ParseUint(string(fields[exit-state]), 10, 32)
	if err != nil {
		return stat{}, fmt.Errorf("malformed stat file: exit code: %w", err)
	}
	s.exit = unix.WaitStatus(code)
	return s, nil
}

// Pid is the process's pid in the pid namespace of /proc, as
// pidfd_open(2) documents it: -1 after it was reaped.
func Pid(fd int) (int, error) {
	b, err := os.ReadFile("/proc/self/fdinfo/" + strconv.Itoa(fd))
	if err != nil {
		return 0, err
	}
	for line := range bytes.Lines(b) {
		if v, ok := bytes.CutPrefix(line, []byte("Pid:")); ok {
			return strconv.Atoi(string(bytes.TrimSpace(v)))
		}
	}
	return 0, fmt.Errorf("descriptor %d is not a pidfd: %w", fd, errdefs.ErrInvalidArgument)
}
