package vmm

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/proto"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/containerd-kuasar/containerd-kuasar/internal/pidfd"
	"github.com/containerd-kuasar/containerd-kuasar/task/api"
	debug "github.com/containerd-kuasar/containerd-kuasar/task/console"
)

// serveConsole is a guest that has nothing but a debug console.
func serveConsole(t *testing.T, dir string, key []byte) {
	t.Helper()
	if err := os.Mkdir(filepath.Join(dir, vmDir), 0o700); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", filepath.Join(dir, vmDir, socketVsock))
	if err != nil {
		t.Fatal(err)
	}
	s, err := ttrpc.NewServer()
	if err != nil {
		t.Fatal(err)
	}
	api.RegisterConsoleService(s, debug.New(key))
	served := make(chan error, 1)
	go func() { served <- s.Serve(t.Context(), hybridDoor{l}) }()
	t.Cleanup(func() {
		s.Close()
		<-served
	})
}

// hybridDoor answers what the daemon of a hybrid vsock does.
type hybridDoor struct{ net.Listener }

func (d hybridDoor) Accept() (net.Conn, error) {
	c, err := d.Listener.Accept()
	if err != nil {
		return nil, err
	}
	if line, err := bufio.NewReaderSize(c, 16).ReadString('\n'); err != nil || line != "CONNECT 1025\n" {
		return nil, fmt.Errorf("%q, %v", line, err)
	}
	_, err = io.WriteString(c, "OK 1025\n")
	return c, err
}

func TestRecord(t *testing.T) {
	dir := t.TempDir()
	serveConsole(t, dir, []byte("key"))
	at := func(s state) Record {
		saved, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		r, err := ReadRecord(dir, saved)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	runs := map[string]Process{roleVMM: {Pid: 7}}
	ours := state{Key: []byte("key"), Processes: runs, Hypervisor: "h", Accel: TCG, CPUs: 2, Memory: 4 << 20}
	r := at(ours)
	if r.Hypervisor != "h" || r.Accel != TCG || r.CPUs != 2 || r.Memory != 4<<20 || r.Pid != 7 || !r.Debug() {
		t.Errorf("%+v", r)
	}
	var out bytes.Buffer
	if err := r.Run(t.Context(), []string{"cat", "/proc/version"}, &out); err != nil || !strings.HasPrefix(out.String(), "Linux version") {
		t.Errorf("%q, %v", out.String(), err)
	}
	if err := r.Run(t.Context(), []string{"cat", "/nonexistent"}, io.Discard); !errdefs.IsNotFound(err) {
		t.Errorf("missing file: %v", err)
	}
	stopped := ours
	stopped.Stopped = true
	for name, c := range map[string]struct {
		state state
		class func(error) bool
	}{
		"debug off":   {state{Processes: runs}, errdefs.IsFailedPrecondition},
		"not started": {state{Key: []byte("key")}, errdefs.IsFailedPrecondition},
		"stopped":     {stopped, errdefs.IsFailedPrecondition},
		"another key": {state{Key: []byte("kez"), Processes: runs}, errdefs.IsPermissionDenied},
	} {
		if err := at(c.state).Run(t.Context(), []string{"help"}, io.Discard); !c.class(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := ReadRecord(dir, json.RawMessage(`"`)); !errdefs.IsDataLoss(err) {
		t.Errorf("damaged: %v", err)
	}
}

// Whoever gives up is not kept waiting, and what writes to nobody is told so.
func TestRunCanceled(t *testing.T) {
	dir := t.TempDir()
	serveConsole(t, dir, []byte("key"))
	r := Record{dir: dir, Pid: 1, state: state{Key: []byte("key")}}
	ctx, cancel := context.WithCancel(t.Context())
	err := r.Run(ctx, []string{"dmesg", "-f"}, seen(cancel))
	if err == nil {
		t.Error("no error")
	}
	if err != nil && ctx.Err() == nil { // there is no /dev/kmsg to be read
		t.Skip("needs the kernel's log:", err)
	}
}

// A user who gives up on a guest that does not answer leaves the connection open
// for its answer: see keeper.
func TestRunGivesUp(t *testing.T) {
	h, conns := late(t)
	// vhost-device-vsock, as far as the keeper is concerned.
	device := exec.CommandContext(t.Context(), "sleep", "1000")
	device.ExtraFiles = h.keep.files()
	if err := device.Start(); err != nil {
		t.Fatal(err)
	}
	started, err := pidfd.StartTime(device.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	if err := h.keep.close(); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Dir(h.path)
	if err := os.Symlink(".", filepath.Join(dir, vmDir)); err != nil {
		t.Fatal(err)
	}
	r := Record{dir: dir, Pid: 1, state: state{
		Key: []byte("key"), Processes: map[string]Process{roleVsock: {Pid: device.Process.Pid, Start: started}},
	}}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx, []string{"ps"}, io.Discard) }()
	c := <-conns
	defer c.Close()
	cancel()
	if err := <-ended; err == nil {
		t.Fatal("no error")
	}
	if _, err := io.WriteString(c, "OK 1025\n"); err != nil {
		t.Errorf("answer: %v", err)
	}
	if err := device.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if _, err := device.Process.Wait(); err != nil {
		t.Fatal(err)
	}
	if err := r.Run(t.Context(), []string{"ps"}, io.Discard); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("without vhost-device-vsock: %v", err)
	}
}

// FuzzRun is for what a guest answers to a command of its console. Whatever that
// is, it ends with the connection.
func FuzzRun(f *testing.F) {
	const stream = 1 // of a connection's first request
	output, err := proto.Marshal(&api.RunResponse{Output: []byte("text")})
	if err != nil {
		f.Fatal(err)
	}
	end, err := proto.Marshal(&ttrpc.Response{})
	if err != nil {
		f.Fatal(err)
	}
	frame := func(stream uint32, kind, flags byte, body []byte) []byte {
		b := binary.BigEndian.AppendUint32(nil, uint32(len(body)))
		return append(append(binary.BigEndian.AppendUint32(b, stream), kind, flags), body...)
	}
	const response, data = 2, 3
	f.Add(slices.Concat(frame(stream, data, 0, output), frame(stream, response, 0, end)))
	f.Add(slices.Concat(frame(stream, data, 0, output), frame(stream, data, 0, output)))
	f.Add(frame(stream+2, data, 0, output))
	f.Add(frame(stream, data, 0xff, output))
	f.Add(frame(stream, 9, 0, output))
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0, 0, 0, stream, data, 0})
	f.Add([]byte("HTTP/1.1 400 Bad Request\r\n\r\n"))
	f.Fuzz(func(t *testing.T, answer []byte) {
		ours, theirs := net.Pipe()
		said := make(chan struct{})
		go func() {
			defer close(said)
			defer theirs.Close()
			_, _ = theirs.Read(make([]byte, 4096))
			go func() { _, _ = io.Copy(io.Discard, theirs) }()
			_, _ = theirs.Write(answer)
		}()
		c := ttrpc.NewClient(ours)
		defer c.Close()
		var out bytes.Buffer
		_ = copyRun(t.Context(), api.NewConsoleClient(c), &api.RunRequest{Args: []string{"ps"}}, &out)
		if out.Len() > len(answer) {
			t.Errorf("%d bytes of output from %d", out.Len(), len(answer))
		}
		c.Close()
		<-said
	})
}

type seen func()

func (s seen) Write(b []byte) (int, error) {
	s()
	return len(b), nil
}

// The key is a pod's own, and its guest gets it.
func TestKey(t *testing.T) {
	one, two := newKey(), newKey()
	if len(one) != keySize || bytes.Equal(one, two) {
		t.Errorf("%x, %x", one, two)
	}
	p := &pod{config: &runtime.PodSandboxConfig{}, state: state{Key: one}}
	r, err := p.identity()
	if err != nil || !bytes.Equal(r.ConsoleKey, one) {
		t.Errorf("%v, %v", r, err)
	}
}
