package sandboxer

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/events/exchange"
	core "github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/containerd/plugin"
	"github.com/containerd/plugin/registry"
	"github.com/sirupsen/logrus"

	"github.com/containerd-kuasar/containerd-kuasar/sandbox"
	"github.com/containerd-kuasar/containerd-kuasar/sandbox/sandboxtest"
)

// daemon is what a plugin sees of one.
type daemon struct {
	ic  *plugin.InitContext
	log *bytes.Buffer
	dir string
}

func newDaemon(t *testing.T, others ...*plugin.Registration) *daemon {
	t.Helper()
	d := &daemon{log: &bytes.Buffer{}, dir: t.TempDir()}
	logger := logrus.New()
	logger.SetOutput(d.log)
	ctx := log.WithLogger(t.Context(), logrus.NewEntry(logger))
	set := plugin.NewPluginSet()
	for _, r := range others {
		if err := set.Add(r.Init(plugin.NewContext(ctx, set, nil))); err != nil {
			t.Fatal(err)
		}
	}
	d.ic = plugin.NewContext(ctx, set, map[string]string{
		plugins.PropertyStateDir: filepath.Join(d.dir, "io.containerd.sandbox.controller.v1.x"),
	})
	return d
}

var event = &plugin.Registration{
	Type: plugins.EventPlugin, ID: "exchange",
	InitFn: func(*plugin.InitContext) (any, error) { return exchange.NewExchange(), nil },
}

// register registers r once for all tests and returns its plugin.
func register(t *testing.T, r Registration) plugin.Registration {
	t.Helper()
	Register(r)
	for _, p := range registry.Graph(func(*plugin.Registration) bool { return false }) {
		if p.Type == plugins.SandboxControllerPlugin && p.ID == r.Name {
			return p
		}
	}
	t.Fatal("it is not registered")
	return plugin.Registration{}
}

func TestRegister(t *testing.T) {
	d := newDaemon(t, event)
	config := &struct{ Key string }{"default"}
	other := plugin.Type("io.containerd.kuasar.other.v1")
	registry.Register(&plugin.Registration{Type: other, ID: "other"})
	registry.Register(event)
	p := register(t, Registration{
		Name: "memory", Config: config, Requires: []plugin.Type{other},
		Backend: func(_ *plugin.InitContext, dir string) (sandbox.Backend, error) {
			if want := filepath.Join(d.dir, "kuasar"); dir != want {
				t.Errorf("directory %s, want %s", dir, want)
			}
			return &sandboxtest.Memory{}, nil
		},
	})
	if p.Config != config || !slices.Equal(p.Requires, []plugin.Type{plugins.EventPlugin, plugins.SandboxStorePlugin, other}) {
		t.Errorf("registered as %+v", p)
	}
	instance, err := p.InitFn(d.ic)
	if err != nil {
		t.Fatal(err)
	}
	// Both the CRI plugin and ours look for these.
	c := instance.(core.Controller).(*sandbox.Controller)
	defer c.Close()
	if c.Name() != "memory" {
		t.Errorf("name %s", c.Name())
	}
	ctx := namespaces.WithNamespace(t.Context(), "test")
	if err := c.Create(ctx, core.Sandbox{ID: "one"}); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(d.dir, "kuasar", "memory", "one")); err != nil {
		t.Error(err)
	}
	if err := c.Shutdown(ctx, "one"); err != nil {
		t.Error(err)
	}
}

// Whatever is wrong with a sandboxer, the CRI plugin must start.
func TestWhatIsMissingIsSkipped(t *testing.T) {
	broken := &plugin.Registration{
		Type: plugins.EventPlugin, ID: "exchange",
		InitFn: func(*plugin.InitContext) (any, error) { return nil, errors.New("injected") },
	}
	memory := func(*plugin.InitContext, string) (sandbox.Backend, error) { return &sandboxtest.Memory{}, nil }
	for name, test := range map[string]struct {
		backend func(*plugin.InitContext, string) (sandbox.Backend, error)
		events  *plugin.Registration
		file    string // in the way of a directory
		logged  bool
		says    string
	}{
		"component": {
			backend: func(*plugin.InitContext, string) (sandbox.Backend, error) {
				return nil, errors.Join(errors.New("no hypervisor"), errdefs.ErrUnavailable)
			},
			events: event, says: "no hypervisor",
		},
		"sense": {
			backend: func(*plugin.InitContext, string) (sandbox.Backend, error) { return nil, errors.New("bad path") },
			events:  event, logged: true, says: "bad path",
		},
		"directory": {backend: memory, events: event, file: "kuasar", logged: true, says: "kuasar"},
		"events":    {backend: memory, events: broken, logged: true, says: "injected"},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDaemon(t, test.events)
			if test.file != "" {
				if err := os.WriteFile(filepath.Join(d.dir, test.file), nil, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			p := register(t, Registration{Name: "without-" + name, Backend: test.backend})
			_, err := p.InitFn(d.ic)
			if !plugin.IsSkipPlugin(err) || !strings.Contains(err.Error(), test.says) || !strings.Contains(err.Error(), "without-"+name) {
				t.Errorf("error %v", err)
			}
			if logged := strings.Contains(d.log.String(), test.says); logged != test.logged {
				t.Errorf("log %q", d.log)
			}
		})
	}
}
