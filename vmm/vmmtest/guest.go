package vmmtest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strings"

	"github.com/containerd/ttrpc"

	"github.com/containerd-kuasar/containerd-kuasar/task/api"
	"github.com/containerd-kuasar/containerd-kuasar/task/phase"
)

// guest serves hybrid vsock at path, with an agent on port 1024.
func guest(path, mode string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return err
	}
	switch mode {
	case "ends":
		return errors.New("it ends as it was told")
	case "loaded", "sterile":
		if err := await(); err != nil {
			return err
		}
		if mode == "sterile" {
			return errors.New("it ends as it was told")
		}
		if err := hello(path, mode); err != nil {
			return err
		}
	case "template":
		const console = 3
		if _, err := fmt.Fprintln(os.NewFile(console, "console"), api.TemplateReady); err != nil {
			return err
		}
	default:
		if err := hello(path, mode); err != nil {
			return err
		}
	}
	var log phase.Log
	log.Keep("", Booted)
	server, err := ttrpc.NewServer(ttrpc.WithUnaryServerInterceptor(log.Interceptor))
	if err != nil {
		return err
	}
	api.RegisterAgentService(server, agent{&log})
	api.RegisterGuestService(server, setter{})
	return server.Serve(context.Background(), &door{Listener: l})
}

// await returns when somebody resumes the machine.
func await() error {
	const wait = 4
	l, err := net.FileListener(os.NewFile(wait, resume))
	if err != nil {
		return err
	}
	defer l.Close()
	c, err := l.Accept()
	if err != nil {
		return err
	}
	return c.Close()
}

func hello(path, mode string) error {
	text := api.Hello()
	switch mode {
	case "mute":
		return nil
	case "garbled":
		text = []byte("GET / HTTP/1.0\r\n\r\n")
	case "other":
		text[len(text)-1]++
	}
	c, err := net.Dial("unix", path+"_1024")
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = c.Write(text)
	return err
}

// door is the agent's port.
type door struct{ net.Listener }

// Accept implements net.Listener.
func (d *door) Accept() (net.Conn, error) {
	for {
		c, err := d.Listener.Accept()
		if err != nil {
			return nil, err
		}
		// The client waits for the answer before it writes more, so that there
		// is nothing else to read yet.
		line, err := bufio.NewReaderSize(c, 64).ReadString('\n')
		if err == nil && strings.TrimSpace(line) == "CONNECT 1024" {
			if _, err := fmt.Fprintf(c, "OK 1024\n"); err == nil {
				return c, nil
			}
		}
		c.Close()
	}
}

// Booted is what the guest says of its boot: more than it can have taken.
var Booted = &api.PhasesResponse{Took: 1 << 62, Phases: []*api.Phase{
	{Name: "kernel", End: 1 << 61}, {Name: "serve", Begin: 1 << 61, End: 1 << 62}, {Name: "never", Begin: 1 << 62, End: -1},
}}

// agent knows no processes.
type agent struct{ phases *phase.Log }

func (a agent) Phases(_ context.Context, r *api.PhasesRequest) (*api.PhasesResponse, error) {
	return a.phases.Take(r.Call)
}

func (agent) Info(context.Context, *api.InfoRequest) (*api.InfoResponse, error) {
	return &api.InfoResponse{Protocol: api.Protocol, Version: "vmmtest", Pid: 1}, nil
}

func (agent) List(context.Context, *api.ListRequest) (*api.ListResponse, error) {
	return &api.ListResponse{}, nil
}

func (agent) Events(ctx context.Context, _ *api.EventsRequest, s api.Agent_EventsServer) error {
	if err := s.Send(&api.Event{}); err != nil {
		return err
	}
	<-ctx.Done()
	return ctx.Err()
}

func (agent) Retained(context.Context, *api.RetainedRequest) (*api.RetainedResponse, error) {
	return &api.RetainedResponse{}, nil
}

// setter is what it is told to be.
type setter struct{ api.GuestService }

func (setter) Setup(ctx context.Context, r *api.SetupRequest) (*api.SetupResponse, error) {
	phase.Begin(ctx, "share")()
	if _, ok := r.Sysctls[noSysctl]; ok {
		return nil, fmt.Errorf("set sysctl %s: %w", noSysctl, fs.ErrNotExist)
	}
	return &api.SetupResponse{}, nil
}

func (setter) Network(context.Context, *api.NetworkRequest) (*api.NetworkResponse, error) {
	return &api.NetworkResponse{}, nil
}
