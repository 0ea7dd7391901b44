//go:build guest

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"

	"github.com/containerd/log"
	"github.com/containerd/ttrpc"
	"github.com/opencontainers/runc/libcontainer/exeseal"
	"golang.org/x/sys/unix"

	"github.com/containerd-kuasar/containerd-kuasar/internal/pidfd"
	"github.com/containerd-kuasar/containerd-kuasar/task/api"
	"github.com/containerd-kuasar/containerd-kuasar/task/container"
	"github.com/containerd-kuasar/containerd-kuasar/task/forward"
	"github.com/containerd-kuasar/containerd-kuasar/task/guest"
	_ "github.com/containerd-kuasar/containerd-kuasar/task/guest/sealed"
	"github.com/containerd-kuasar/containerd-kuasar/task/oom"
	"github.com/containerd-kuasar/containerd-kuasar/task/server"
	"github.com/containerd-kuasar/containerd-kuasar/task/stdio"
	"github.com/containerd-kuasar/containerd-kuasar/task/stream"
)

const usage = `usage: kuasar-task failpoints
       kuasar-task --version

This is the guest's build: as PID 1 of a virtual machine it runs the containers
of one pod.
`

// Records, and FIFOs while they are opened, are in memory, as the containers
// are.
const (
	records = "/run/kuasar/agent"
	fifos   = "/run/kuasar/fifos"
)

// roleOf makes PID 1 what it is, whatever the kernel's command line leaves it as
// arguments. The kernel runs this program, too, when it lacks a module.
func roleOf(args []string) func() error {
	switch {
	case os.Getpid() == 1:
		return first
	case len(args) == 3 && args[0] == "-q" && args[1] == "--": // kernel/kmod.c
		return func() error { return load(args[2]) }
	}
	return nil
}

// load is modprobe.
func load(name string) error {
	modules, err := guest.NewLibrary(api.Modules)
	if err != nil {
		return err
	}
	return modules.Request(name)
}

// first is PID 1. It must not return: the kernel would panic.
func first() error {
	deafen()
	err := boot()
	log.L.WithError(err).Error("the guest cannot go on: it ends")
	return errors.Join(err, guest.PowerOff())
}

// deafen keeps alive what is the first process to containers, too, where they
// share the pod's pid namespace: Go's runtime ends by these signals otherwise,
// and the machine with it. What is executed has the defaults again.
func deafen() {
	signal.Notify(make(chan os.Signal, 1),
		unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM, unix.SIGABRT, unix.SIGILL, unix.SIGTRAP,
		unix.SIGBUS, unix.SIGFPE, unix.SIGSEGV, unix.SIGSTKFLT, unix.SIGSYS)
}

func boot() error {
	var marks guest.Marks
	marks.Mark("kernel")
	modules, err := guest.NewModules(guest.ModuleDir)
	if err != nil {
		return err
	}
	if err := guest.Boot(modules); err != nil {
		return err
	}
	if !exeseal.IsSelfExeCloned() {
		log.L.Warn("cannot run from a sealed copy: each start of a process makes its own")
	}
	name()
	marks.Mark("init")
	return serve(modules, &marks)
}

// serve returns when nothing can be served any more.
func serve(modules *guest.Modules, marks *guest.Marks) error {
	reaper, err := pidfd.NewReaper()
	if err != nil {
		return err
	}
	if err := reaper.Sweep(); err != nil {
		return err
	}
	host, err := stdio.NewHost(reaper)
	if err != nil {
		return err
	}
	streams, err := stream.NewGuest(host, fifos)
	if err != nil {
		return err
	}
	var s *server.Server
	watcher, err := oom.NewWatcher(func(id string) { s.OOM(id) })
	if err != nil {
		return err
	}
	runtime := container.Machine{Runtime: container.New(nobody{})}
	s = server.New(server.Config{
		Dir:      records,
		Version:  version,
		Runtimes: map[string]server.Runtime{"": runtime, container.OptionsURL: runtime},
		Stdio:    streams,
		Reaper:   reaper,
		Holder:   nobody{},
		OOM:      watcher,
		Refresh:  guest.Refresh,
	})
	if err := s.Restore(context.Background(), nil); err != nil {
		return err
	}
	t, err := ttrpc.NewServer(ttrpc.WithChainUnaryServerInterceptor(server.Interceptor, s.Trace, trim()))
	if err != nil {
		return err
	}
	s.Register(t)
	api.RegisterGuestService(t, guest.New(modules))
	return listen(t, streams, modules, func() { s.Booted(marks.End("serve")) })
}

// listen calls ready when the host can be told that the guest is.
func listen(t *ttrpc.Server, streams *stream.Guest, modules *guest.Modules, ready func()) error {
	template, err := guest.Template()
	if err != nil {
		return err
	}
	ports, err := guest.Listen(forward.Port)
	if err != nil {
		return err
	}
	stdio, err := guest.Listen(stream.Port)
	if err != nil {
		return err
	}
	l, err := guest.Listen(api.Port)
	if err != nil {
		return err
	}
	failed := make(chan error)
	go func() { failed <- forward.Serve(ports) }()
	go func() { failed <- streams.Serve(stdio) }()
	go func() { failed <- t.Serve(context.Background(), l) }()
	ready()
	go func() {
		err := error(nil)
		if template {
			err = guest.GreetAsClone(modules)
		} else {
			err = guest.Greet()
		}
		if err != nil {
			failed <- err // nobody waits for this guest
		}
	}()
	return fmt.Errorf("serve: %w", <-failed)
}

// nobody holds descriptors: in a guest all ends together.
type nobody struct{}

func (nobody) Hold(string, *os.File) error { return nil }
func (nobody) Drop(string)                 {}
