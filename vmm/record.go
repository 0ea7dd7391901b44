package vmm

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/ttrpc"

	"github.com/containerd-kuasar/containerd-kuasar/task/api"
)

// keySize of the debug console's key, in bytes.
const keySize = 16

// newKey makes one. It is as secret as the pod's record: of this host's root.
func newKey() []byte {
	key := make([]byte, keySize)
	_, _ = rand.Read(key) // it never fails
	return key
}

// Record is what a pod's saved state says of its machine, to those who only
// look at it from outside of the daemon.
type Record struct {
	Hypervisor string
	Accel      Accel
	CPUs       uint32
	Memory     uint64 // bytes
	Pid        int    // of the VMM; 0 before it was started
	Template   string // which it is a clone of; empty if it has booted

	dir   string
	state state
}

// ReadRecord reads what Save returned of the sandbox whose directory is dir.
func ReadRecord(dir string, saved json.RawMessage) (Record, error) {
	r := Record{dir: dir}
	if err := json.Unmarshal(saved, &r.state); err != nil {
		return r, fmt.Errorf("record of the machine: %w: %w", err, errdefs.ErrDataLoss)
	}
	s := r.state
	r.Hypervisor, r.Accel, r.CPUs, r.Memory, r.Pid = s.Hypervisor, s.Accel, s.CPUs, s.Memory, s.Processes[roleVMM].Pid
	r.Template = s.Template
	return r, nil
}

// Debug says whether the guest has a debug console.
func (r Record) Debug() bool { return len(r.state.Key) > 0 }

// Run runs a command of the guest's debug console (see task/console), past the
// daemon, and writes what it prints to out; it may be anything. It returns when
// the command has ended, or ctx has. A machine that has no console, or does not
// run, is errdefs.ErrFailedPrecondition.
func (r Record) Run(ctx context.Context, args []string, out io.Writer) error {
	switch {
	case !r.Debug():
		return fmt.Errorf("its debug console is off: set debug = true in the options of its runtime handler, and make the pod anew: %w", errdefs.ErrFailedPrecondition)
	case r.Pid == 0 || r.state.Stopped:
		return fmt.Errorf("its machine does not run: %w", errdefs.ErrFailedPrecondition)
	}
	way, done, err := r.way()
	if err != nil {
		return fmt.Errorf("debug console: %w", err)
	}
	defer done()
	conn, err := way.Dial(ctx, api.ConsolePort)
	if err != nil {
		return fmt.Errorf("debug console: %w", err)
	}
	// A connection has one command: the guest learns from its end that nobody
	// reads any more.
	c := ttrpc.NewClient(conn)
	defer c.Close()
	return copyRun(ctx, api.NewConsoleClient(c), &api.RunRequest{Key: r.state.Key, Args: args}, out)
}

// way finds the guest as the daemon would; call done afterwards. The user may
// give up on a guest that is slow to answer: see keeper.
func (r Record) way() (way transport, done func(), err error) {
	if r.state.CID != 0 {
		return vhost{cid: r.state.CID}, func() {}, nil
	}
	h := hybrid{path: filepath.Join(r.dir, vmDir, socketVsock)}
	q, ok := r.state.Processes[roleVsock]
	if !ok {
		return h, func() {}, nil
	}
	if h.keep, err = openKeeper(q); errdefs.IsNotFound(err) {
		err = fmt.Errorf("its machine does not run: %w: %w", err, errdefs.ErrFailedPrecondition)
	}
	if err != nil {
		return nil, nil, err
	}
	return h, func() { h.keep.close() }, nil
}

func copyRun(ctx context.Context, c api.ConsoleClient, r *api.RunRequest, out io.Writer) error {
	stream, err := c.Run(ctx, r)
	if err != nil {
		return errgrpc.ToNative(err)
	}
	for {
		r, err := stream.Recv()
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil && ctx.Err() != nil:
			return context.Cause(ctx)
		case err != nil:
			return errgrpc.ToNative(err)
		}
		if _, err := out.Write(r.Output); err != nil {
			return err
		}
	}
}
