//go:build !guest

package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"

	"github.com/containerd/log"
	"github.com/containerd/ttrpc"
	"golang.org/x/sys/unix"

	"github.com/containerd-kuasar/containerd-kuasar/internal/pidfd"
	"github.com/containerd-kuasar/containerd-kuasar/task/container"
	"github.com/containerd-kuasar/containerd-kuasar/task/hold"
	"github.com/containerd-kuasar/containerd-kuasar/task/oom"
	"github.com/containerd-kuasar/containerd-kuasar/task/server"
	"github.com/containerd-kuasar/containerd-kuasar/task/stdio"
	"github.com/containerd-kuasar/containerd-kuasar/task/wasm"
	"github.com/containerd-kuasar/containerd-kuasar/task/wasm/engine"
)

// maxSocket is the longest path of a unix socket: sun_path of unix(7) without
// its final zero.
const maxSocket = 107

func serve(args []string) error {
	flags := flag.NewFlagSet("serve", flag.ContinueOnError)
	dir := flags.String("dir", "", "private `directory` of this worker")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if !filepath.IsAbs(*dir) || flags.NArg() > 0 {
		return fmt.Errorf("serve takes an absolute directory and nothing else: serve --dir DIR")
	}
	ready := seal()
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	defer stop()
	w, err := newWorker(*dir)
	if err != nil {
		return fmt.Errorf("serve %s: %w", *dir, err)
	}
	defer w.close()
	if ready != nil {
		if _, err := ready.WriteString("ok\n"); err != nil {
			return fmt.Errorf("tell that the worker is ready: %w", err)
		}
		ready.Close()
	}
	log.L.WithField("dir", *dir).WithField("version", version).Info("worker serves")
	return w.run(ctx)
}

// worker is what serves one directory.
type worker struct {
	lock     *os.File
	listener net.Listener
	holder   *hold.Holder
	reaper   *pidfd.Reaper
	stdio    *stdio.Host
	oom      *oom.Watcher
	server   *server.Server
}

func newWorker(dir string) (_ *worker, err error) {
	if path := filepath.Join(dir, "agent.sock"); len(path) > maxSocket {
		return nil, fmt.Errorf("socket path %s has %d bytes, the kernel takes %d: use a shorter state directory", path, len(path), maxSocket)
	}
	w := &worker{}
	defer func() {
		if err != nil {
			w.close()
		}
	}()
	if w.lock, err = lock(dir); err != nil {
		return nil, err
	}
	// Orphans of containers come to us instead of to the host's first process.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return nil, fmt.Errorf("become subreaper: %w", err)
	}
	if w.reaper, err = pidfd.NewReaper(); err != nil {
		return nil, err
	}
	if err := w.reaper.Sweep(); err != nil {
		return nil, err
	}
	if w.stdio, err = stdio.NewHost(w.reaper); err != nil {
		return nil, err
	}
	if w.oom, err = oom.NewWatcher(func(id string) { w.server.OOM(id) }); err != nil {
		return nil, err
	}
	if w.holder, err = hold.Listen(filepath.Join(dir, "hold.sock")); err != nil {
		return nil, err
	}
	runtime := container.New(w.holder)
	modules := wasm.New(wasm.Config{Begin: w.reaper.Begin, Dir: filepath.Join(dir, "wasm"), Version: version})
	w.server = server.New(server.Config{
		Dir:      filepath.Join(dir, "containers"),
		Version:  version,
		Runtimes: map[string]server.Runtime{"": runtime, container.OptionsURL: runtime, engine.URL: modules},
		Stdio:    w.stdio,
		Reaper:   w.reaper,
		Holder:   w.holder,
		OOM:      w.oom,
	})
	w.listener, err = listen(filepath.Join(dir, "agent.sock"))
	return w, err
}

// run returns when ctx ends or nothing can be served any more. Containers run
// on: the next worker takes them up.
func (w *worker) run(ctx context.Context) error {
	t, err := ttrpc.NewServer(
		ttrpc.WithServerHandshaker(ttrpc.UnixSocketRequireSameUser()),
		ttrpc.WithChainUnaryServerInterceptor(server.Interceptor, w.server.Trace, trim()))
	if err != nil {
		return err
	}
	w.server.Register(t)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		if err := w.restore(ctx); err != nil {
			cancel(err)
		}
	}()
	go func() {
		<-ctx.Done()
		_ = t.Close()
	}()
	err = t.Serve(ctx, w.listener)
	if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, context.Canceled) {
		return cause
	}
	if errors.Is(err, ttrpc.ErrServerClosed) {
		return nil
	}
	return err
}

func (w *worker) restore(ctx context.Context) error {
	held, err := w.holder.Restore(ctx)
	if err != nil {
		return err
	}
	return w.server.Restore(ctx, held)
}

func (w *worker) close() {
	if w.listener != nil {
		w.listener.Close()
	}
	if w.holder != nil {
		w.holder.Close()
	}
	if w.oom != nil {
		w.oom.Close()
	}
	if w.stdio != nil {
		w.stdio.Close()
	}
	if w.reaper != nil {
		w.reaper.Close()
	}
	if w.lock != nil {
		w.lock.Close()
	}
}

// lock makes sure that one worker serves dir, for as long as its file is open.
func lock(dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("another worker serves it: %w", err)
	}
	return f, nil
}

func listen(path string) (net.Listener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	return l, os.Chmod(path, 0o600)
}
