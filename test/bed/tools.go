package bed

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
)

// Crictl is a crictl command on the bed's daemon, ready to start.
func (b *Bed) Crictl(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, b.Path("build/crictl"), append([]string{"--config", filepath.Join(b.Dir, "crictl.yaml")}, args...)...)
	cmd.Dir = b.Dir
	return cmd
}

// Ctr is a ctr command on the bed's daemon in CRI's namespace, ready to start.
func (b *Bed) Ctr(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, b.Path("bin/ctr"), append([]string{"--address", b.Socket(), "--namespace", Namespace}, args...)...)
	cmd.Dir = b.Dir
	return cmd
}

// KuasarCtl is a kuasar-ctl command on the bed's daemon, ready to start.
func (b *Bed) KuasarCtl(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, b.Path("bin/kuasar-ctl"), append([]string{"--config", filepath.Join(b.Dir, "config.toml")}, args...)...)
	cmd.Dir = b.Dir
	return cmd
}

// Output runs a command and returns its standard output without the spaces
// around it. The error has what it wrote to standard error.
func Output(cmd *exec.Cmd) (string, error) {
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", filepath.Base(cmd.Path), strings.Join(cmd.Args[1:], " "), err, strings.TrimSpace(stderr.String()))
	}
	return strings.TrimSpace(string(out)), nil
}
