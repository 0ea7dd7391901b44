package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/containerd-kuasar/containerd-kuasar/test/lab/job"
)

// unitDir is where systemd finds units that last as long as the machine.
const unitDir = "/run/systemd/system"

// unit is all that the machine starts beside what systemd cannot do without.
const unit = `[Unit]
Description=the job of the lab
DefaultDependencies=no
Requires=-.slice
AllowIsolate=yes

[Service]
Type=oneshot
ExecStart=%[1]s/init
StandardError=file:/dev/console
Delegate=yes
`

// install puts the unit, the job and this program where systemd finds them, in a
// root file system that is not yet the root.
func install(j job.Job) error {
	dir := filepath.Join("/root", unitDir)
	program, err := os.ReadFile("/init")
	if err != nil {
		return err
	}
	text, err := json.Marshal(j)
	if err != nil {
		return err
	}
	return errors.Join(
		os.MkdirAll(dir, 0o755),
		os.WriteFile(filepath.Join(dir, "init"), program, 0o755),
		os.WriteFile(filepath.Join(dir, job.File), text, 0o644),
		os.WriteFile(filepath.Join(dir, "lab.target"), []byte("[Unit]\nDescription=the lab\nRequires=lab.service dbus.socket\nAfter=dbus.socket\nDefaultDependencies=no\n"), 0o644),
		os.WriteFile(filepath.Join(dir, "lab.service"), fmt.Appendf(nil, unit, unitDir), 0o644),
	)
}

// systemd becomes PID 1.
func systemd(job.Job) error {
	const program = "/lib/systemd/systemd"
	err := unix.Exec(program, []string{program, "--unit=lab.target"}, []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "container=lab"})
	return fmt.Errorf("run %s: %w", program, err)
}
