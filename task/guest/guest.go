// Package guest is what an agent does as PID 1 of a virtual machine, beside
// running containers: it makes the machine a pod. See task/api/guest.proto.
//
// The initramfs has the agent and kernel modules, and nothing else: no program
// is executed but the agent itself, and the modules are loaded by the verbs
// that need them, so that a guest boots with those of its vsock alone.
//
// The host is trusted: it could read and write the guest's memory. What runs in
// the containers is not.
package guest

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/containerd-kuasar/containerd-kuasar/task/api"
)

// Guest implements api.GuestService for the machine that it runs in.
type Guest struct {
	modules *Modules
	turn    chan struct{}     // held by the call that changes something
	mounted map[string]string // what is mounted, by target; guarded by turn
	key     []byte            // of the debug console, once it is open; guarded by turn
	random  func(request uint, arg []byte) error
}

var _ api.GuestService = (*Guest)(nil)

// New serves a machine that was booted.
func New(m *Modules) *Guest {
	return &Guest{modules: m, turn: make(chan struct{}, 1), mounted: map[string]string{}, random: controlRandom}
}

// take waits for the caller's turn to change something.
func (g *Guest) take(ctx context.Context) error {
	select {
	case g.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("another call changes the guest: %w", context.Cause(ctx))
	}
}

func (g *Guest) pass() { <-g.turn }

// PowerOff ends the machine. It returns on error only.
func PowerOff() error {
	unix.Sync()
	if err := unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF); err != nil {
		return fmt.Errorf("power off: %w", err)
	}
	return errors.New("power off: the machine runs on")
}
