package bed

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

// daemon is one run of the daemon's binary.
type daemon struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when it has exited
	err  error         // valid after done
}

// Start starts the daemon and returns when it says that it is ready: CRI has
// recovered and serves. What an earlier run left is there for it to find.
func (b *Bed) Start(ctx context.Context) error {
	binary := b.options.Binary
	if binary == "" {
		binary = b.Path("bin/containerd-kuasar")
	}
	return b.StartBinary(ctx, binary)
}

// StartBinary is Start with another daemon, to swap binaries below pods.
func (b *Bed) StartBinary(ctx context.Context, binary string) error {
	if b.running() {
		return errors.New("start daemon: it runs already")
	}
	notify, err := b.listenNotify()
	if err != nil {
		return fmt.Errorf("start daemon: %w", err)
	}
	defer notify.Close()
	mark := b.Mark()
	d, err := b.spawn(binary)
	if err != nil {
		return fmt.Errorf("start daemon: %w", err)
	}
	b.mu.Lock()
	b.daemon = d
	b.mu.Unlock()

	ready := make(chan error, 1)
	go func() { ready <- awaitReady(notify) }()
	select {
	case err = <-ready:
	case <-d.done:
		err = fmt.Errorf("it exited: %w", d.err)
	case <-ctx.Done():
		err = fmt.Errorf("it is not ready: %w", ctx.Err())
	}
	if err != nil {
		return fmt.Errorf("start daemon: %w; its log:\n%s", err, tail(b.Log(mark), 30))
	}
	return nil
}

func (b *Bed) spawn(binary string) (*daemon, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer w.Close()
	cmd := exec.Command(binary, "--config", filepath.Join(b.Dir, "config.toml"))
	cmd.Dir = b.Dir
	cmd.Env = append([]string{
		// The shim and engines are looked for in PATH.
		"PATH=" + b.Path("bin") + ":" + b.Path("build/wasmedge") + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"NOTIFY_SOCKET=" + b.notifySocket(),
		"TMPDIR=" + os.TempDir(),
	}, b.options.Environ...)
	cmd.Stdout, cmd.Stderr = w, w
	// A terminal's Ctrl-C is for the test, which then ends the daemon.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		r.Close()
		return nil, err
	}
	go b.log.follow(r)
	d := &daemon{cmd: cmd, done: make(chan struct{})}
	go func() {
		d.err = cmd.Wait()
		if d.err == nil {
			d.err = errors.New("with status 0")
		}
		close(d.done)
	}()
	return d, nil
}

func (b *Bed) notifySocket() string { return filepath.Join(b.Dir, "notify") }

func (b *Bed) listenNotify() (*net.UnixConn, error) {
	if err := os.Remove(b.notifySocket()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	return net.ListenUnixgram("unixgram", &net.UnixAddr{Name: b.notifySocket(), Net: "unixgram"})
}

// awaitReady reads service notifications as systemd would. It ends when the
// socket is closed.
func awaitReady(conn *net.UnixConn) error {
	for buffer := make([]byte, 4096); ; {
		n, err := conn.Read(buffer)
		if err != nil {
			return fmt.Errorf("wait for readiness: %w", err)
		}
		if strings.Contains(string(buffer[:n]), "READY=1") {
			return nil
		}
	}
}

// SetEnviron replaces what Options.Environ adds, from the next start on.
func (b *Bed) SetEnviron(environ ...string) { b.options.Environ = environ }

// Pid is the running daemon's, or the last one's.
func (b *Bed) Pid() int {
	if d := b.current(); d != nil {
		return d.cmd.Process.Pid
	}
	return 0
}

// Kill kills the daemon alone, as a crash would, and waits for its end. Its
// pods, shims and workers live on.
func (b *Bed) Kill() error {
	d := b.current()
	if d == nil {
		return nil
	}
	if err := d.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("kill daemon: %w", err)
	}
	<-d.done
	return nil
}

// Stop ends the daemon by SIGTERM, as an upgrade does. Its pods live on.
func (b *Bed) Stop(ctx context.Context) error {
	d := b.current()
	if d == nil {
		return nil
	}
	if err := d.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stop daemon: %w", err)
	}
	select {
	case <-d.done:
		return nil
	case <-ctx.Done():
		return errors.Join(fmt.Errorf("stop daemon: it does not end: %w", ctx.Err()), b.Kill())
	}
}

// Exited is closed when the daemon that runs now has ended.
func (b *Bed) Exited() <-chan struct{} {
	if d := b.current(); d != nil {
		return d.done
	}
	ended := make(chan struct{})
	close(ended)
	return ended
}

func (b *Bed) current() *daemon {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.daemon
}

func (b *Bed) running() bool {
	select {
	case <-b.Exited():
		return false
	default:
		return true
	}
}

// tail is the last n lines of a text.
func tail(text string, n int) string {
	lines := strings.Split(text, "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
