package ctl

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/containerd/cgroups/v3"
	"golang.org/x/sys/unix"
)

// release is the running kernel's.
func release() (text string, major, minor int) {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return "", 0, 0
	}
	text = unix.ByteSliceToString(u.Release[:])
	_, _ = fmt.Sscanf(text, "%d.%d", &major, &minor)
	return text, major, minor
}

func since(major, minor int) bool {
	_, a, b := release()
	return a > major || a == major && b >= minor
}

// kernel must be of a release at least.
func kernel(major, minor int) Part {
	text, _, _ := release()
	if !since(major, minor) {
		return Part{"Linux", Missing, fmt.Sprintf("%s: %d.%d or newer is needed", text, major, minor)}
	}
	return Part{"Linux", OK, text}
}

// exits are kept by the kernel for a worker that died.
func exits() Part {
	p := Part{"exit codes", OK, "survive the worker"}
	if !since(6, 15) {
		p.Grade, p.Detail = Limited, "what ends while the worker is dead has the exit code 255: Linux 6.15 keeps it"
	}
	return p
}

// controllers are those that pods' limits and statistics need.
var controllers = []string{"cpu", "memory", "pids"}

func groups() Part {
	const name = "cgroups"
	mode := cgroups.Mode()
	var have []string
	var err error
	switch mode {
	case cgroups.Unified:
		have, err = fields("/sys/fs/cgroup/cgroup.controllers")
	case cgroups.Legacy, cgroups.Hybrid:
		have, err = enabled("/proc/cgroups")
	default:
		err = errors.New("there are none: mount them on /sys/fs/cgroup")
	}
	if err != nil {
		return found(name, "", err)
	}
	version := "version 1"
	if mode == cgroups.Unified {
		version = "version 2"
	}
	for _, c := range controllers {
		if !slices.Contains(have, c) {
			return Part{name, Limited, fmt.Sprintf("%s, without the controller %s: the kernel is built without it, or its command line disables it", version, c)}
		}
	}
	return Part{name, OK, version}
}

func fields(path string) ([]string, error) {
	b, err := os.ReadFile(path)
	return strings.Fields(string(b)), err
}

// enabled reads the controllers of version 1 from lines of name, hierarchy,
// number and whether it is enabled.
func enabled(path string) ([]string, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var all []string
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) == 4 && f[3] == "1" {
			all = append(all, f[0])
		}
	}
	return all, nil
}

// seccomp is the kernel's filter of system calls.
func seccomp() Part {
	// It gets as far as to the filter, which is not there.
	if unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, 0, 0, 0) != unix.EFAULT {
		return Part{"seccomp", Missing, "the kernel is built without CONFIG_SECCOMP_FILTER"}
	}
	return Part{"seccomp", OK, ""}
}

// landlock confines engines further from Linux 6.12 on: see task/wasm/cell.
func landlock() Part {
	const abi = 6
	v, _, e := unix.RawSyscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	switch {
	case e != 0:
		return Part{"landlock", Limited, "modules are confined by seccomp alone: Landlock is not enabled (lsm=landlock of the kernel's command line)"}
	case v < abi:
		return Part{"landlock", Limited, fmt.Sprintf("modules are confined by seccomp alone: its version is %d, Linux 6.12 has %d", v, abi)}
	}
	return Part{"landlock", OK, fmt.Sprintf("version %d", v)}
}
