// kuasar-ctl is for the operator of a node: what it can run, what runs on it,
// and what goes on in its virtual machines.
//
//	kuasar-ctl check              what this node can run, and what it lacks
//	kuasar-ctl ps                 the sandboxes on it
//	kuasar-ctl exec POD -- CMD    one command of a guest's debug console
//	kuasar-ctl console POD        the debug console, or the guest kernel's log
//	kuasar-ctl trace [POD]        what the time of calls goes into, as they come
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"time"

	"github.com/containerd/errdefs"
	"github.com/sirupsen/logrus"
	"github.com/urfave/cli/v3"
	"golang.org/x/sys/unix"

	"github.com/containerd-kuasar/containerd-kuasar/ctl"
)

// version is set by the linker.
var version = "0.0.0+unknown"

// errMissing is of a node that lacks something: the report has said what.
var errMissing = errors.New("something is missing")

func main() {
	logrus.SetOutput(io.Discard) // errors say it all
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM)
	defer stop()
	err := app().Run(ctx, os.Args)
	if err != nil && !errors.Is(err, errMissing) {
		fmt.Fprintln(os.Stderr, "kuasar-ctl:", err)
	}
	if err != nil {
		os.Exit(1)
	}
}

func app() *cli.Command {
	asJSON := &cli.BoolFlag{Name: "json", Usage: "print JSON"}
	return &cli.Command{
		Name:    "kuasar-ctl",
		Usage:   "look at a node of containerd-kuasar",
		Version: version,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "config", Aliases: []string{"c"}, Usage: "containerd's configuration", DefaultText: ctl.Config},
			&cli.StringFlag{Name: "address", Aliases: []string{"a"}, Usage: "containerd's socket", DefaultText: "as configured"},
			&cli.StringFlag{Name: "state", Usage: "containerd's state directory", DefaultText: "as configured"},
		},
		HideHelpCommand: true,
		OnUsageError:    func(_ context.Context, _ *cli.Command, err error, _ bool) error { return err },
		Commands: []*cli.Command{
			{
				Name: "check", ArgsUsage: "[SANDBOXER...]", Flags: []cli.Flag{asJSON}, Action: check,
				Usage: "say what this node can run, and what is missing for the rest",
				Description: "Exits with 1 if pods do not run of a sandboxer that is named. If none is named: of runc, wasm,\n" +
					"or one that a runtime handler of the configuration uses.",
			},
			{Name: "ps", Flags: []cli.Flag{asJSON}, Action: list, Usage: "list the sandboxes on this node"},
			{
				Name: "exec", ArgsUsage: "POD -- COMMAND [ARGUMENT...]", SkipFlagParsing: true, Action: exec,
				Usage:       "run a command of the debug console in a pod's virtual machine",
				Description: "The command help lists them. A pod is named by its id, the beginning of that, its name, or namespace/name.",
			},
			{
				Name: "console", ArgsUsage: "POD", Action: console,
				Usage: "open the debug console of a pod's virtual machine",
				Flags: []cli.Flag{
					&cli.BoolFlag{Name: "kernel", Aliases: []string{"k"}, Usage: "show the guest kernel's log instead"},
					&cli.BoolFlag{Name: "follow", Aliases: []string{"f"}, Usage: "with --kernel: and what comes"},
				},
			},
			{
				Name: "trace", ArgsUsage: "[POD]", Action: watch,
				Usage:       "trace calls about pods as they come, and show what their time goes into",
				Description: "Nothing needs to be configured, and nothing is traced before or after.",
				Flags: []cli.Flag{
					asJSON,
					&cli.BoolFlag{Name: "all", Usage: "show calls that are about no sandbox of ours, too"},
					&cli.IntFlag{Name: "count", Aliases: []string{"n"}, Usage: "end after so many calls", DefaultText: "never"},
				},
			},
		},
	}
}

// node is the one that the flags mean.
func node(ctx context.Context, c *cli.Command) (*ctl.Node, error) {
	n, err := ctl.Open(ctx, c.String("config"))
	if err != nil {
		return nil, err
	}
	if c.IsSet("address") {
		n.Address = c.String("address")
	}
	if c.IsSet("state") {
		n.State = c.String("state")
	}
	return n, nil
}

func check(ctx context.Context, c *cli.Command) error {
	n, err := node(ctx, c)
	if err != nil {
		return err
	}
	r, err := n.Check(ctx, c.Args().Slice())
	if err != nil {
		return err
	}
	if c.Bool("json") {
		err = printJSON(r)
	} else {
		err = r.Print(os.Stdout)
	}
	if err == nil && !r.OK {
		err = errMissing
	}
	return err
}

func list(ctx context.Context, c *cli.Command) error {
	if c.NArg() > 0 {
		return fmt.Errorf("ps takes no arguments: %w", errdefs.ErrInvalidArgument)
	}
	n, err := node(ctx, c)
	if err != nil {
		return err
	}
	all, offline, err := n.Sandboxes(ctx)
	if err != nil {
		return err
	}
	if offline != nil {
		fmt.Fprintf(os.Stderr, "kuasar-ctl: %v: this is what was recorded last, without containers\n", offline)
	}
	if c.Bool("json") {
		return printJSON(all)
	}
	return ctl.Print(os.Stdout, all, time.Now())
}

func printJSON(v any) error {
	e := json.NewEncoder(os.Stdout)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

func exec(ctx context.Context, c *cli.Command) error {
	args := c.Args().Slice()
	if len(args) > 0 && (args[0] == "-h" || args[0] == "--help") {
		return cli.ShowSubcommandHelp(c)
	}
	if len(args) > 1 && args[1] == "--" {
		args = append(args[:1:1], args[2:]...)
	}
	if len(args) < 2 {
		return fmt.Errorf("usage: kuasar-ctl exec %s: the command help lists those that there are: %w", c.ArgsUsage, errdefs.ErrInvalidArgument)
	}
	return run(ctx, c, args[0], args[1:])
}

// run runs one command until it ends or is interrupted.
func run(ctx context.Context, c *cli.Command, pod string, args []string) error {
	n, err := node(ctx, c)
	if err != nil {
		return err
	}
	m, err := n.Machine(ctx, pod)
	if err != nil {
		return err
	}
	if err := m.Run(ctx, args, ctl.Safe(os.Stdout)); err != nil {
		return fmt.Errorf("pod %s: %w", pod, err)
	}
	return nil
}

func console(ctx context.Context, c *cli.Command) error {
	pod := c.Args().First()
	switch {
	case c.NArg() != 1:
		return fmt.Errorf("usage: kuasar-ctl console [--kernel [--follow]] POD: %w", errdefs.ErrInvalidArgument)
	case c.Bool("kernel") && c.Bool("follow"):
		return run(ctx, c, pod, []string{"dmesg", "-f"})
	case c.Bool("kernel"):
		return run(ctx, c, pod, []string{"dmesg"})
	case c.Bool("follow"):
		return fmt.Errorf("--follow is for --kernel: %w", errdefs.ErrInvalidArgument)
	}
	n, err := node(ctx, c)
	if err != nil {
		return err
	}
	m, err := n.Machine(ctx, pod)
	if err != nil {
		return err
	}
	// Whether there is a console is said before anything is typed.
	if err := m.Run(ctx, []string{"help"}, io.Discard); err != nil {
		return fmt.Errorf("pod %s: %w", pod, err)
	}
	s := ctl.Session{Runner: m, In: os.Stdin, Out: ctl.Safe(os.Stdout), Errs: os.Stderr, Each: interruptible}
	if ctl.Terminal(os.Stdin) {
		fmt.Fprintln(os.Stderr, "The debug console of a virtual machine: help lists its commands, exit leaves it.")
		s.Prompt = pod + "> "
	}
	if err := s.Run(ctx); err != nil {
		return fmt.Errorf("pod %s: %w", pod, err)
	}
	return nil
}

// interruptible lets the interrupt key end a command, and not the session.
func interruptible(ctx context.Context) (context.Context, context.CancelFunc) {
	return signal.NotifyContext(ctx, unix.SIGINT)
}
