package worker

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/ttrpc"
	"golang.org/x/sys/unix"

	"github.com/containerd-kuasar/containerd-kuasar/task/api"
	"github.com/containerd-kuasar/containerd-kuasar/task/hold"
)

// The test binary is its own kuasar-task: a worker without containers.

// kind is the environment variable that says how it behaves.
const kind = "KUASAR_TEST_WORKER"

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "serve" {
		if err := fake(os.Args[3], os.Getenv(kind)); err != nil {
			fmt.Fprintln(os.Stderr, "fake:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func fake(dir, kind string) error {
	unix.CloseOnExec(4)
	ready := os.NewFile(3, "ready")
	protocol := uint32(api.Protocol)
	switch kind {
	case "dies":
		return fmt.Errorf("no kernel, no fun")
	case "dies late":
		<-time.After(200 * time.Millisecond)
		return nil
	case "mute":
		signal.Ignore(unix.SIGTERM)
		select {}
	case "stranger":
		fmt.Fprintln(ready, "hello")
		select {}
	case "old":
		protocol--
	case "dies once":
		if err := os.Mkdir(filepath.Join(dir, "once"), 0o700); err == nil {
			defer unix.Kill(os.Getpid(), unix.SIGKILL)
			return dieAsked(dir, ready)
		}
	}
	holder, err := hold.Listen(filepath.Join(dir, "hold.sock"))
	if err != nil {
		return err
	}
	path := filepath.Join(dir, "agent.sock")
	_ = os.Remove(path)
	l, err := net.Listen("unix", path)
	if err != nil {
		return err
	}
	held := make(chan map[string]*os.File, 1)
	go func() {
		files, _ := holder.Restore(context.Background())
		held <- files
	}()
	server, err := ttrpc.NewServer()
	if err != nil {
		return err
	}
	api.RegisterAgentService(server, &agent{protocol: protocol, held: held, holder: holder})
	fmt.Fprintln(ready, "ok")
	ready.Close()
	return server.Serve(context.Background(), l)
}

// dieAsked returns when the daemon has connected.
func dieAsked(dir string, ready *os.File) error {
	holder, err := hold.Listen(filepath.Join(dir, "hold.sock"))
	if err != nil {
		return err
	}
	l, err := net.Listen("unix", filepath.Join(dir, "agent.sock"))
	if err != nil {
		return err
	}
	fmt.Fprintln(ready, "ok")
	if _, err := holder.Restore(context.Background()); err != nil {
		return err
	}
	_, err = l.Accept()
	return err
}

// agent answers Info once it is restored, and with Retained holds a descriptor
// under the container's id.
type agent struct {
	api.AgentService
	protocol uint32
	held     chan map[string]*os.File
	holder   *hold.Holder
}

func (a *agent) Info(context.Context, *api.InfoRequest) (*api.InfoResponse, error) {
	files := <-a.held
	a.held <- files
	return &api.InfoResponse{Protocol: a.protocol, Version: "fake", Pid: uint32(os.Getpid())}, nil
}

// List tells what was given back to it.
func (a *agent) List(context.Context, *api.ListRequest) (*api.ListResponse, error) {
	files := <-a.held
	a.held <- files
	r := &api.ListResponse{}
	for key := range files {
		r.Processes = append(r.Processes, &api.Process{ContainerId: key})
	}
	return r, nil
}

func (a *agent) Retained(_ context.Context, r *api.RetainedRequest) (*api.RetainedResponse, error) {
	f, err := os.Open(os.DevNull)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return &api.RetainedResponse{}, a.holder.Hold(r.ContainerId, f)
}
