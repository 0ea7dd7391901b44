package sandbox

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/containerd/errdefs"

	"github.com/containerd-kuasar/containerd-kuasar/task"
)

// husk stands for a sandbox of which nothing but its directory is left, so that
// there is nothing for a backend to do: the host has rebooted since.
type husk struct{}

var errHusk = fmt.Errorf("the host has rebooted since it ran: %w", errdefs.ErrFailedPrecondition)

func (husk) Start(context.Context) error           { return errHusk }
func (husk) Stop(context.Context) error            { return nil }
func (husk) Delete(context.Context) error          { return nil }
func (husk) Release(context.Context, string) error { return nil }
func (husk) Save() (json.RawMessage, error)        { return nil, nil }
func (husk) Wait(context.Context) (Exit, error)    { return lost(), nil }
func (husk) Agent(context.Context) (*task.Client, error) {
	return nil, fmt.Errorf("%w: %w", errHusk, errdefs.ErrUnavailable)
}
func (husk) Prepare(context.Context, *Container) (Bundle, error) {
	return Bundle{}, errHusk
}

// unknownStatus is the exit status of what nobody saw exit (containerd's
// client.UnknownExitStatus).
const unknownStatus = 255

// lost is how a sandbox ended of which only that is known.
func lost() Exit { return Exit{Status: unknownStatus, At: time.Now()} }
