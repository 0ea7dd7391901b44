package guest

import (
	"bytes"
	"context"
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/containerd/ttrpc"

	"github.com/containerd-kuasar/containerd-kuasar/task/api"
	"github.com/containerd-kuasar/containerd-kuasar/task/console"
)

// openConsole serves the debug console to those who know the key, if there is
// one. A guest without one does not listen there.
func (g *Guest) openConsole(key []byte) error {
	switch {
	case len(key) == 0 || bytes.Equal(key, g.key):
		return nil
	case g.key != nil:
		return fmt.Errorf("the debug console has another key: %w", errdefs.ErrAlreadyExists)
	}
	l, err := Listen(api.ConsolePort)
	if err != nil {
		return fmt.Errorf("debug console: %w", err)
	}
	t, err := ttrpc.NewServer()
	if err != nil {
		return err
	}
	api.RegisterConsoleService(t, console.New(key))
	g.key = key
	go func() {
		if err := t.Serve(context.Background(), l); err != nil {
			log.L.WithError(err).Error("the debug console ended")
		}
	}()
	return nil
}
