package wasm

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/containerd-kuasar/containerd-kuasar/internal/record"
	"github.com/containerd-kuasar/containerd-kuasar/sandbox"
	"github.com/containerd-kuasar/containerd-kuasar/sandbox/host"
	"github.com/containerd-kuasar/containerd-kuasar/task/wasm/engine"
)

// newBackend is one that gets no worker.
func newBackend() *Backend {
	return &Backend{
		Find:    func(string) (string, error) { return "", nil },
		Sysctls: func() host.Defaults { return host.Defaults{} },
	}
}

func newSpec(t *testing.T) sandbox.Spec {
	return sandbox.Spec{ID: "pod", Namespace: "ns", Dir: t.TempDir(), Config: &runtime.PodSandboxConfig{
		Linux: &runtime.LinuxPodSandboxConfig{SecurityContext: &runtime.LinuxSandboxSecurityContext{
			NamespaceOptions: &runtime.NamespaceOption{Network: runtime.NamespaceMode_NODE},
		}},
	}}
}

func TestCreateRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func(b *Backend, s *sandbox.Spec)
		says  string
		is    func(error) bool
	}{
		"missing engine": {func(b *Backend, _ *sandbox.Spec) {
			b.Find = func(name string) (string, error) {
				return "", fmt.Errorf("%s: install it: %w", name, errdefs.ErrFailedPrecondition)
			}
		}, "wazero: install it", errdefs.IsFailedPrecondition},
		"unknown option": {func(_ *Backend, s *sandbox.Spec) { s.Options.TOML = []byte("x = 1") }, `"x"`, errdefs.IsInvalidArgument},
		"engine that is not allowed": {func(_ *Backend, s *sandbox.Spec) {
			s.Config.Annotations = map[string]string{Annotation: "wasmtime"}
		}, Annotation, errdefs.IsInvalidArgument},
		"user namespace": {func(_ *Backend, s *sandbox.Spec) {
			ids := []*runtime.IDMapping{{HostId: 100000, Length: 65536}}
			o := s.Config.Linux.SecurityContext.NamespaceOptions
			o.UsernsOptions = &runtime.UserNamespace{Mode: runtime.NamespaceMode_POD, Uids: ids, Gids: ids}
		}, "hostUsers", errdefs.IsInvalidArgument},
	} {
		t.Run(name, func(t *testing.T) {
			b, s := newBackend(), newSpec(t)
			c.spoil(b, &s)
			_, err := b.Create(t.Context(), s)
			if err == nil || !c.is(err) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestRestore(t *testing.T) {
	for name, c := range map[string]struct {
		saved string
		runs  bool
	}{
		"never started": {`{"boot":""}`, false},
		"running":       {fmt.Sprintf(`{"boot":%q}`, record.Boot()), true},
		"stopped":       {fmt.Sprintf(`{"boot":%q,"stopped":true}`, record.Boot()), false},
		"before a boot": {`{"boot":"another"}`, false},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := newBackend().Restore(t.Context(), newSpec(t), json.RawMessage(c.saved))
			if err != nil {
				t.Fatal(err)
			}
			p := s.(*pod)
			select {
			case <-p.over:
				if c.runs {
					t.Error("it is over")
				}
			default:
				if !c.runs {
					t.Error("it runs")
				}
			}
			if c.runs {
				saved, err := p.Save()
				if err != nil || string(saved) != c.saved {
					t.Errorf("saved %s, %v", saved, err)
				}
			}
		})
	}
	if _, err := newBackend().Restore(t.Context(), newSpec(t), json.RawMessage(`[`)); !errors.Is(err, errdefs.ErrDataLoss) {
		t.Errorf("a broken record: %v", err)
	}
}

// TestPrepare looks at the spec that the worker gets.
func TestPrepare(t *testing.T) {
	n := newNode(t)
	spec := newSpec(t)
	spec.Dir = n.dir
	s, err := n.backend.Create(t.Context(), spec)
	must(t, err)
	bundle, err := s.Prepare(t.Context(), module(t, "c"))
	must(t, err)
	defer func() { must(t, s.Release(t.Context(), "c")) }()
	raw, err := os.ReadFile(filepath.Join(bundle.Path, "config.json"))
	must(t, err)
	var got specs.Spec
	must(t, json.Unmarshal(raw, &got))
	if ns := got.Linux.Namespaces; len(ns) != 1 || ns[0].Type != specs.MountNamespace {
		t.Errorf("namespaces %v", ns)
	}
	if !filepath.IsAbs(got.Root.Path) {
		t.Errorf("root %s", got.Root.Path)
	}
	o, err := engine.Parse(bundle.Options)
	if err != nil || o.Engine != engine.Wazero {
		t.Errorf("options %+v, %v", o, err)
	}
}
