package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"

	"github.com/containerd/errdefs"
	"github.com/urfave/cli/v3"
	"golang.org/x/sys/unix"

	"github.com/containerd-kuasar/containerd-kuasar/ctl"
)

// errEnough ends what was to be counted.
var errEnough = errors.New("enough calls")

func watch(ctx context.Context, c *cli.Command) error {
	if c.NArg() > 1 || c.Int("count") < 0 {
		return fmt.Errorf("usage: kuasar-ctl trace [--json] [--all] [--count N] [POD]: %w", errdefs.ErrInvalidArgument)
	}
	n, err := node(ctx, c)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(ctx, unix.SIGINT)
	defer stop()
	seen := 0
	show := func(call ctl.Call) error {
		if err := printCall(c, call); err != nil {
			return err
		}
		if seen++; seen == c.Int("count") {
			return errEnough
		}
		return nil
	}
	ready := func() { fmt.Fprintln(os.Stderr, "kuasar-ctl: calls are traced from now on, until this is interrupted") }
	err = n.Watch(ctx, ctl.Filter{All: c.Bool("all"), Pod: c.Args().First()}, ready, show)
	if ctx.Err() != nil || errors.Is(err, errEnough) {
		return nil
	}
	return err
}

// printCall writes a line of JSON, or a picture.
func printCall(c *cli.Command, call ctl.Call) error {
	if c.Bool("json") {
		return json.NewEncoder(os.Stdout).Encode(call)
	}
	return call.Waterfall(os.Stdout, ctl.Width(os.Stdout))
}
