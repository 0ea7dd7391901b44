package vmm

import (
	"bytes"
	"fmt"
	"os"
	"sync"

	"github.com/containerd-kuasar/containerd-kuasar/task/api"
)

// console takes what the guest's kernel prints while it starts, for the error if
// it does not. Nobody looks at it later: it is a pipe that is closed then, and
// whatever the VMM has to write to it is dropped.
type console struct {
	in, out *os.File
	ready   chan struct{} // closed when a template's agent can be saved

	mu   sync.Mutex
	last []byte
}

func newConsole() (*console, error) {
	in, out, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("make the guest's console: %w", err)
	}
	c := &console{in: in, out: out, ready: make(chan struct{})}
	go c.read()
	return c, nil
}

// read ends with close.
func (c *console) read() {
	b := make([]byte, 4096)
	for ready := false; ; {
		n, err := c.in.Read(b)
		if err != nil {
			return
		}
		c.mu.Lock()
		c.last = append(c.last, b[:n]...)
		if !ready && bytes.Contains(c.last, []byte(api.TemplateReady)) {
			ready = true
			close(c.ready)
		}
		c.last = c.last[max(0, len(c.last)-tailSize):]
		c.mu.Unlock()
	}
}

// tail quotes the end of what was printed.
func (c *console) tail() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	text := bytes.TrimSpace(c.last)
	if len(text) == 0 {
		return ""
	}
	return fmt.Sprintf("; the guest says: %q", text)
}

func (c *console) close() {
	c.in.Close()
	c.out.Close()
}
