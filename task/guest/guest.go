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
	"os"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/containerd-kuasar/containerd-kuasar/task/api"
	"github.com/containerd-kuasar/containerd-kuasar/task/stats"
)

// Group is the cgroup above those of all containers, as the host names it in
// their specs.
const Group = "/kuasar"

// Guest implements api.GuestService for the machine that it runs in.
type Guest struct {
	modules *Modules
	turn    chan struct{}     // held by the call that changes something
	mounted map[string]string // what is mounted, by target; guarded by turn
	key     []byte            // of the debug console, once it is open; guarded by turn
}

var _ api.GuestService = (*Guest)(nil)

// New serves a machine that was booted.
func New(m *Modules) *Guest {
	return &Guest{modules: m, turn: make(chan struct{}, 1), mounted: map[string]string{}}
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

// Usage implements api.GuestService.
func (g *Guest) Usage(context.Context, *api.UsageRequest) (*api.UsageResponse, error) {
	total, available, err := memory()
	if err != nil {
		return nil, err
	}
	u := &api.UsageResponse{MemoryTotal: total, MemoryAvailable: available}
	m, err := stats.Metrics(map[string]string{"": cgroupRoot + Group})
	switch {
	case errdefs.IsNotFound(err): // no container yet
	case err != nil:
		return nil, err
	default:
		u.Containers = &anypb.Any{TypeUrl: m.GetTypeUrl(), Value: m.GetValue()}
	}
	return u, nil
}

// memory reads the two lines of /proc/meminfo that nothing else tells, in bytes.
func memory() (total, available uint64, err error) {
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, 0, err
	}
	for line := range strings.Lines(string(b)) {
		var kib uint64
		switch name, value, _ := strings.Cut(line, ":"); name {
		case "MemTotal", "MemAvailable":
			if _, err := fmt.Sscanf(value, "%d kB", &kib); err != nil {
				return 0, 0, fmt.Errorf("/proc/meminfo: %q: %w", line, err)
			}
			if name == "MemTotal" {
				total = kib << 10
			} else {
				available = kib << 10
			}
		}
	}
	return total, available, nil
}

// Shutdown implements api.GuestService.
func (g *Guest) Shutdown(context.Context, *api.ShutdownRequest) (*api.ShutdownResponse, error) {
	return nil, PowerOff()
}

// PowerOff ends the machine. It returns on error only.
func PowerOff() error {
	unix.Sync()
	if err := unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF); err != nil {
		return fmt.Errorf("power off: %w", err)
	}
	return errors.New("power off: the machine runs on")
}
