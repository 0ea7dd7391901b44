package container

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/containerd-kuasar/containerd-kuasar/task/server"
)

// A container's stdio are FIFOs on the host, which criu does not find in the
// container's mounts. It takes them if they are declared external to the dump,
// and gives the restored process others in their place. libcontainer declares
// pipes that way, not FIFOs, but lets criu read a configuration file.

// criuConfig is the label, and annotation, that names criu's configuration
// file; without it criu reads defaultConfig.
const (
	criuConfig    = "org.criu.config"
	defaultConfig = "/etc/criu/runc.conf"
)

// stdioFile in an image maps the descriptors 0 to 2 to criu's names of the
// FIFOs that they were.
const stdioFile = "kuasar-stdio.json"

// loadForDump loads the container with its FIFOs declared external: from a copy
// of its state in dir that names a configuration file, since its own must not.
func loadForDump(ref server.Ref, dir, image string) (*libcontainer.Container, error) {
	b, err := os.ReadFile(filepath.Join(state(ref), "state.json"))
	if errors.Is(err, os.ErrNotExist) {
		return nil, class(libcontainer.ErrNotExist)
	}
	if err != nil {
		return nil, err
	}
	var s libcontainer.State
	if err := json.Unmarshal(b, &s); err != nil {
		return nil, fmt.Errorf("state: %w", err)
	}
	fifos, err := external(s.InitProcessPid)
	if err != nil {
		return nil, err
	}
	if b, err = json.Marshal(fifos); err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(image, stdioFile), b, 0o600); err != nil {
		return nil, err
	}
	var lines []string
	for _, name := range fifos {
		lines = append(lines, "external "+name)
	}
	path, err := configure(dir, label(s.Config.Labels), lines)
	if err != nil {
		return nil, err
	}
	// libcontainer takes the first.
	s.Config.Labels = append([]string{criuConfig + "=" + path}, s.Config.Labels...)
	if b, err = json.Marshal(&s); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Join(dir, ref.ID), 0o700); err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(dir, ref.ID, "state.json"), b, 0o600); err != nil {
		return nil, err
	}
	c, err := libcontainer.Load(dir, ref.ID)
	if err != nil {
		return nil, class(err)
	}
	return c, nil
}

// pipeSize is what a pipe holds at least, in bytes (pipe(7)).
const pipeSize = 64 << 10

// inherit has criu put criu's own stdio in the place of the FIFOs of the image.
//
// criu must find that only once: it reads the file twice, before and after what
// it is told otherwise (setup_opts_from_req of its cr-service.c), and takes each
// descriptor once. So it is a pipe, which is empty the second time. The caller
// closes it, unless it is nil.
func inherit(spec *specs.Spec, image string) (config *os.File, err error) {
	b, err := os.ReadFile(filepath.Join(image, stdioFile))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil // made by another runtime, or with a terminal
	}
	if err != nil {
		return nil, err
	}
	var fifos map[int]string
	if err := json.Unmarshal(b, &fifos); err != nil {
		return nil, invalid("%s of image %s: %w", stdioFile, image, err)
	}
	var lines []string
	for fd, name := range fifos {
		if strings.ContainsAny(name, " \n") {
			return nil, invalid("%s of image %s: %q", stdioFile, image, name)
		}
		lines = append(lines, fmt.Sprintf("inherit-fd fd[%d]:%s", fd, name))
	}
	text, err := configuration(spec.Annotations[criuConfig], lines)
	if err != nil {
		return nil, err
	}
	if len(text) > pipeSize {
		return nil, invalid("configuration of criu: %d bytes, more than %d", len(text), pipeSize)
	}
	config, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	_, err = w.WriteString(text)
	if err = errors.Join(err, w.Close()); err != nil {
		config.Close()
		return nil, fmt.Errorf("configuration of criu: %w", err)
	}
	if spec.Annotations == nil {
		spec.Annotations = map[string]string{}
	}
	spec.Annotations[criuConfig] = fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), config.Fd())
	return config, nil
}

// external returns criu's names of the FIFOs among a process's stdio.
func external(pid int) (map[int]string, error) {
	fifos := map[int]string{}
	for fd := range 3 {
		var st unix.Stat_t
		err := unix.Stat(fmt.Sprintf("/proc/%d/fd/%d", pid, fd), &st)
		if err == unix.ENOENT {
			continue // closed
		}
		if err != nil {
			return nil, fmt.Errorf("stdio of process %d: %w", pid, err)
		}
		target, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", pid, fd))
		if err != nil {
			return nil, fmt.Errorf("stdio of process %d: %w", pid, err)
		}
		if st.Mode&unix.S_IFMT != unix.S_IFIFO || strings.HasPrefix(target, "pipe:") {
			continue
		}
		mount, err := mountID(fmt.Sprintf("/proc/%d/fdinfo/%d", pid, fd))
		if err != nil {
			return nil, err
		}
		fifos[fd] = fmt.Sprintf("file[%x:%x]", mount, st.Ino)
	}
	return fifos, nil
}

// mountID reads that of an open file, see proc_pid_fdinfo(5).
func mountID(path string) (int, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	s := bufio.NewScanner(f)
	for s.Scan() {
		if id, ok := strings.CutPrefix(s.Text(), "mnt_id:"); ok {
			return strconv.Atoi(strings.TrimSpace(id))
		}
	}
	return 0, errors.Join(fmt.Errorf("%s has no mnt_id", path), s.Err())
}

// configure writes a configuration file with what base says, and lines.
func configure(dir, base string, lines []string) (path string, err error) {
	text, err := configuration(base, lines)
	if err != nil {
		return "", err
	}
	path = filepath.Join(dir, "criu.conf")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		return "", fmt.Errorf("configuration of criu: %w", err)
	}
	return path, nil
}

// configuration adds lines to that of the operator.
func configuration(base string, lines []string) (string, error) {
	if base == "" {
		base = defaultConfig
	}
	b, err := os.ReadFile(base)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("configuration of criu: %w", err)
	}
	return string(b) + "\n" + strings.Join(lines, "\n") + "\n", nil
}

func label(labels []string) string {
	for _, l := range labels {
		if v, ok := strings.CutPrefix(l, criuConfig+"="); ok {
			return v
		}
	}
	return ""
}
