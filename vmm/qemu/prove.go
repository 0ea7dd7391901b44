package qemu

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
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

// proofs are remembered, the newest last.
type proofs struct {
	Proofs []proof `json:"proofs"`
}

const (
	// proofTime bounds the guest's silence in the boot, which under nested
	// virtualization takes 4 s in all. One that does not run says nothing.
	proofTime = 15 * time.Second

	// proofLimit bounds all of it, whatever the guest says. A kubelet waits
	// twice as long for a pod.
	proofLimit = 2 * time.Minute

	// maxProofs are remembered: handlers have few kernels and QEMUs.
	maxProofs = 16

	// proofParams have the kernel say how far it is, and not much: each letter
	// stops the guest.
	proofParams = "console=ttyS0 loglevel=6 rdinit=/none"

	// proven is what a kernel says that came as far as to look for its init,
	// which we do not give it.
	proven = "Kernel panic - not syncing"
)

// Prove boots c's kernel with KVM, or remembers that it did. It blocks until that
// is settled the first time after a boot of the host, or after another QEMU or
// kernel was installed.
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
	if err := p.remember(proof{What: what, Runs: runs}); err != nil {
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
	for _, one := range p.read() {
		if one.What == what {
			return one.Runs, true
		}
	}
	return false, false
}

// read returns none if there are none of this boot that can be read.
func (p *Prover) read() []proof {
	var all proofs
	if same, err := record.Read(p.path(), &all); err != nil || !same {
		return nil
	}
	return all.Proofs
}

func (p *Prover) remember(one proof) error {
	all := append(p.read(), one)
	return record.Write(p.path(), proofs{all[max(0, len(all)-maxProofs):]})
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
	program, err := Program(c.VMM)
	if err != nil {
		return false, err.Error()
	}
	l := &line{args: []string{program}}
	c.ID, c.Accel, c.Cmdline, c.CPUs, c.Memory = "proof", vmm.KVM, proofParams, 1, 128<<20
	c.Shares, c.NICs, c.Disks, c.Slots, c.Vsock, c.Console = nil, nil, nil, 0, vmm.Vsock{}, nil
	if err := l.machine(c); err != nil {
		return false, err.Error()
	}
	l.add("-serial", "stdio")
	return boots(ctx, proofTime, proofLimit, l.args)
}

// boots runs QEMU and reads what the guest says, while it says something. It
// returns when QEMU is gone.
func boots(ctx context.Context, patience, limit time.Duration, args []string) (runs bool, why string) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	silence := time.AfterFunc(patience, cancel)
	defer silence.Stop()
	out, in := io.Pipe()
	ended := make(chan error, 1)
	go func() {
		err := vmm.RunConfined(ctx, vmm.Command{Args: args}, in)
		in.Close()
		ended <- err
	}()
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		silence.Reset(patience)
		why = lines.Text()
		runs = runs || strings.Contains(why, proven)
	}
	hangs := ctx.Err() != nil
	cancel()
	out.Close() // a line too long: nobody reads on
	err := <-ended
	switch {
	case hangs && !runs:
		why = fmt.Sprintf("it hangs; its last line is %q", why)
	case why == "" && err != nil:
		why = err.Error()
	}
	return runs, why
}
