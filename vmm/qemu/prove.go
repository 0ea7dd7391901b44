package qemu

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/log"

	"github.com/containerd-kuasar/containerd-kuasar/internal/record"
	"github.com/containerd-kuasar/containerd-kuasar/vmm"
)

// Prover finds out whether KVM really boots a guest here. That there is a
// /dev/kvm says little: in a machine that is virtual itself it may open, and
// then run nothing.
type Prover struct {
	dir  string
	turn chan struct{} // holds a token while it is found out, so that this is done once
}

// NewProver keeps proofs in dir, for the time of a boot.
func NewProver(dir string) *Prover { return &Prover{dir: dir, turn: make(chan struct{}, 1)} }

// proof is of one QEMU and kernel.
type proof struct {
	What string `json:"what"`
	Runs bool   `json:"runs"`
}

const (
	// proofTime bounds the boot. Under nested virtualization it takes 4 s.
	proofTime = 15 * time.Second

	// proven is what a kernel says that came as far as to look for its init,
	// which we do not give it.
	proven = "Kernel panic - not syncing"
)

// Prove boots c's kernel with KVM, or remembers that it did. It blocks for as
// long as proofTime the first time after a boot of the host, or after another
// QEMU or kernel was installed.
func (p *Prover) Prove(ctx context.Context, c vmm.Config) bool {
	select {
	case p.turn <- struct{}{}:
		defer func() { <-p.turn }()
	case <-ctx.Done():
		return false
	}
	what, err := identify(c)
	if err != nil {
		return false // Check says why
	}
	if runs, known := p.known(what); known {
		return runs
	}
	runs, why := prove(ctx, c)
	if ctx.Err() != nil {
		return runs // it may only have been interrupted
	}
	entry := log.G(ctx).WithField("kernel", c.Kernel)
	if runs {
		entry.Info("KVM boots a guest: virtual machines use it")
	} else {
		entry.WithField("reason", why).Warn("KVM does not boot a guest: virtual machines are emulated, which is slow")
	}
	if err := record.Write(p.path(), proof{What: what, Runs: runs}); err != nil {
		entry.WithError(err).Warn("this is not remembered")
	}
	return runs
}

// Known is what Prove remembers of c, if anything.
func (p *Prover) Known(c vmm.Config) (runs, known bool) {
	what, err := identify(c)
	if err != nil {
		return false, false
	}
	return p.known(what)
}

func (p *Prover) known(what string) (runs, known bool) {
	var last proof
	same, err := record.Read(p.path(), &last)
	return last.Runs, err == nil && same && last.What == what
}

func (p *Prover) path() string { return filepath.Join(p.dir, "kvm.json") }

// identify tells one QEMU and kernel from others.
func identify(c vmm.Config) (string, error) {
	program, err := Program(c.VMM)
	if err != nil {
		return "", err
	}
	var all []string
	for _, path := range []string{program, c.Kernel} {
		info, err := os.Stat(path)
		if err != nil {
			return "", err
		}
		all = append(all, fmt.Sprintf("%s %d %d", path, info.Size(), info.ModTime().UnixNano()))
	}
	return strings.Join(all, ", "), nil
}

// prove boots the kernel, which ends in a panic if all is well.
func prove(ctx context.Context, c vmm.Config) (runs bool, why string) {
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return false, err.Error()
	}
	f.Close()
	ctx, cancel := context.WithTimeout(ctx, proofTime)
	defer cancel()
	program, err := Program(c.VMM)
	if err != nil {
		return false, err.Error()
	}
	l := &line{args: []string{program}}
	c.ID, c.Accel, c.Cmdline, c.CPUs, c.Memory = "proof", vmm.KVM, "console=ttyS0 rdinit=/none", 1, 128<<20
	c.Shares, c.NICs, c.Disks, c.Slots, c.Vsock, c.Console = nil, nil, nil, 0, vmm.Vsock{}, nil
	if err := l.machine(c); err != nil {
		return false, err.Error()
	}
	l.add("-serial", "stdio")
	return boots(ctx, l.args)
}

// boots runs QEMU and reads what the guest says.
func boots(ctx context.Context, args []string) (runs bool, why string) {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Env = []string{}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	out, in := io.Pipe()
	cmd.Stdout, cmd.Stderr = in, in
	if err := cmd.Start(); err != nil {
		return false, err.Error()
	}
	go func() { in.CloseWithError(cmd.Wait()) }()
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		why = lines.Text()
		runs = runs || strings.Contains(why, proven)
	}
	out.Close() // a line too long: nobody reads on
	if !runs && ctx.Err() != nil {
		why = fmt.Sprintf("it hangs; its last line is %q", why)
	}
	return runs, why
}
