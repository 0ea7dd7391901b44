// Package console is a guest's debug console: commands by which an operator
// looks into a virtual machine, beside its containers. The agent serves them
// itself. They only look, and nothing of an image is executed by them: who wants
// a program runs it in a container.
package console

import (
	"bytes"
	"cmp"
	"context"
	"crypto/subtle"
	"fmt"
	"io"
	"runtime/debug"
	"slices"
	"text/tabwriter"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/log"

	"github.com/containerd-kuasar/containerd-kuasar/task/api"
)

// Console implements api.ConsoleService for the machine that it runs in. It is
// safe for concurrent use and keeps nothing.
type Console struct{ key []byte }

var _ api.ConsoleService = (*Console)(nil)

// New serves those who know key, which is not empty.
func New(key []byte) *Console { return &Console{bytes.Clone(key)} }

// Opens says whether key is the console's.
func (c *Console) Opens(key []byte) bool {
	return len(c.key) > 0 && subtle.ConstantTimeCompare(c.key, key) == 1
}

// Run implements api.ConsoleService.
func (c *Console) Run(ctx context.Context, r *api.RunRequest, s api.Console_RunServer) (err error) {
	defer func() {
		if p := recover(); p != nil {
			log.G(ctx).Errorf("panic in console: %v\n%s", p, debug.Stack())
			err = fmt.Errorf("panic: %v: %w", p, errdefs.ErrInternal)
		}
		err = errgrpc.ToGRPC(err)
	}()
	if !c.Opens(r.Key) {
		return fmt.Errorf("the key is not this guest's: %w", errdefs.ErrPermissionDenied)
	}
	return run(ctx, r.Args, sender{s})
}

func run(ctx context.Context, args []string, out io.Writer) error {
	if len(args) == 0 {
		return fmt.Errorf("no command: see help: %w", errdefs.ErrInvalidArgument)
	}
	i := slices.IndexFunc(commands(), func(c command) bool { return c.name == args[0] })
	if i < 0 {
		return fmt.Errorf("unknown command %q: see help: %w", args[0], errdefs.ErrInvalidArgument)
	}
	c := commands()[i]
	if n := len(args) - 1; n < c.least || n > c.most {
		return fmt.Errorf("usage: %s %s: %w", c.name, c.args, errdefs.ErrInvalidArgument)
	}
	if err := c.run(ctx, args[1:], out); err != nil {
		return fmt.Errorf("%s: %w", c.name, err)
	}
	return nil
}

// command of the console.
type command struct {
	name, args, help string
	least, most      int // arguments
	run              func(ctx context.Context, args []string, out io.Writer) error
}

// maxFiles bounds the files that one command shows.
const maxFiles = 64

// commands are all there are. It is a function since help is one of them.
func commands() []command {
	return []command{
		{"cat", "FILE...", "show files", 1, maxFiles, cat},
		{"dmesg", "[-f]", "show the kernel's log, with -f also what comes", 0, 1, dmesg},
		{"help", "", "show this", 0, 0, help},
		{"ls", "[DIRECTORY]", "list a directory", 0, 1, ls},
		{"mounts", "", "show what is mounted", 0, 0, mounts},
		{"net", "", "show interfaces, addresses, routes and neighbours", 0, 0, network},
		{"ps", "", "show all processes, those of containers too", 0, 0, ps},
	}
}

func help(_ context.Context, _ []string, out io.Writer) error {
	t := table(out)
	for _, c := range commands() {
		row(t, c.name+" "+c.args, c.help)
	}
	return t.Flush()
}

// table lines columns up.
func table(out io.Writer) *tabwriter.Writer { return tabwriter.NewWriter(out, 0, 8, 2, ' ', 0) }

// row writes a line of a table. What is empty is a dash, so that there are
// always as many columns.
func row(t *tabwriter.Writer, cells ...string) {
	for i, c := range cells {
		end := "\t"
		if i == len(cells)-1 {
			end = "\n"
		}
		fmt.Fprint(t, cmp.Or(c, "-"), end)
	}
}

// chunk bounds the output in one message, in bytes.
const chunk = 16 << 10

// sender sends what is written to it.
type sender struct{ s api.Console_RunServer }

// Write implements io.Writer.
func (s sender) Write(b []byte) (n int, err error) {
	for part := range slices.Chunk(b, chunk) {
		if err := s.s.Send(&api.RunResponse{Output: part}); err != nil {
			return n, err
		}
		n += len(part)
	}
	return n, nil
}
