package ctl

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/containerd-kuasar/containerd-kuasar/internal/record"
	"github.com/containerd-kuasar/containerd-kuasar/sandbox"
)

func open(t *testing.T, toml string) (*Node, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config.toml")
	if err := os.WriteFile(path, []byte(toml), 0o600); err != nil {
		t.Fatal(err)
	}
	return Open(t.Context(), path)
}

func TestOpen(t *testing.T) {
	n, err := open(t, `version = 3
state = "/s"
[grpc]
  address = "/a"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.stock]
  runtime_type = "io.containerd.runc.v2"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.v]
  sandboxer = "vmm"
  [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.v.options]
    memory = 512
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.r]
  sandboxer = "runc"
[plugins.'io.containerd.sandbox.controller.v1.vmm']
  vcpus = 2
`)
	if err != nil {
		t.Fatal(err)
	}
	if n.Address != "/a" || n.State != "/s" || len(n.handlers) != 2 || n.handlers[0].name != "r" {
		t.Fatalf("%+v", n)
	}
	o, err := n.machines(n.handlers[1])
	if err != nil || o.Memory != 512<<20 || o.VCPUs != 2 {
		t.Errorf("%+v, %v", o, err)
	}
	if _, err := Open(t.Context(), "/nonexistent"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing: %v", err)
	}
	if _, err := open(t, "version"); err == nil {
		t.Error("bad syntax: no error")
	}
}

// part returns a part of the one report about a sandboxer.
func part(t *testing.T, r Report, name string) Part {
	t.Helper()
	if len(r.Sandboxers) != 1 {
		t.Fatalf("%+v", r)
	}
	i := slices.IndexFunc(r.Sandboxers[0].Parts, func(p Part) bool { return p.Name == name })
	if i < 0 {
		return Part{}
	}
	return r.Sandboxers[0].Parts[i]
}

func TestCheck(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("PATH", dir)
	for _, file := range []string{"vmlinux", "initramfs.cpio", "qemu", "virtiofsd", "vsock", "kuasar-task"} {
		if err := os.WriteFile(filepath.Join(dir, file), []byte("#!/bin/sh\necho version 1\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	all := "vsock = 'user'\naccel = 'tcg'\npath = '" + dir + "/qemu'\nkernel = '" + dir + "/vmlinux'\ninitrd = '" + dir +
		"/initramfs.cpio'\nvirtiofsd = '" + dir + "/virtiofsd'\nvsock_path = '" + dir + "/vsock'\n"
	for name, c := range map[string]struct {
		sandboxer, plugin, options string
		manifest                   string
		ok                         bool
		part                       string
		grade                      Grade
		says                       string
	}{
		"runc":          {sandboxer: "runc", ok: true, part: "kuasar-task", grade: OK, says: "version 1"},
		"runc options":  {sandboxer: "runc", options: "nosuch = 1", part: "options", grade: Missing, says: "nosuch"},
		"wazero":        {sandboxer: "wasm", ok: true, part: "wazero", grade: OK, says: "in kuasar-task"},
		"wasm choice":   {sandboxer: "wasm", options: "engines = ['wasmedge']", ok: true, part: "wasmedge", grade: Limited, says: "install it"},
		"wasm default":  {sandboxer: "wasm", options: "engine = 'wasmedge'", part: "wasmedge", grade: Missing, says: "install it"},
		"vmm":           {sandboxer: "vmm", options: all, ok: true, part: "qemu", grade: OK, says: "version 1"},
		"emulated":      {sandboxer: "vmm", options: all, ok: true, part: "acceleration", grade: Limited, says: "emulated"},
		"plugin":        {sandboxer: "vmm", plugin: all, ok: true, part: "kernel", grade: OK, says: "vmlinux"},
		"no kernel":     {sandboxer: "vmm", plugin: all, options: "kernel = '/nonexistent'", part: "kernel", grade: Missing, says: "make guest"},
		"no QEMU":       {sandboxer: "vmm", plugin: all, options: "path = '/nonexistent'", part: "qemu", grade: Missing, says: "install it"},
		"no vsock":      {sandboxer: "vmm", plugin: all, options: "vsock_path = '/nonexistent'", part: "vsock", grade: Missing, says: "install vhost-device-vsock"},
		"no virtiofsd":  {sandboxer: "vmm", plugin: all, options: "virtiofsd = '/nonexistent'", part: "virtiofsd", grade: Missing, says: "install virtiofsd"},
		"vmm options":   {sandboxer: "vmm", options: "memory = 1", part: "options", grade: Missing, says: "memory"},
		"hypervisor":    {sandboxer: "vmm", options: "hypervisor = 'h'", part: "hypervisor", grade: Missing, says: `"h"`},
		"another guest": {sandboxer: "vmm", options: all, manifest: `{"protocol": 1000, "agent": "a"}`, part: "guest", grade: Missing, says: "speaks protocol 1000"},
		"this guest":    {sandboxer: "vmm", options: all, manifest: `{"protocol": 1, "kernel": "6.1"}`, ok: true, part: "guest", grade: OK, says: "kernel 6.1"},
	} {
		t.Run(name, func(t *testing.T) {
			if c.manifest != "" {
				path := filepath.Join(dir, "manifest.json")
				if err := os.WriteFile(path, []byte(c.manifest), 0o600); err != nil {
					t.Fatal(err)
				}
				defer os.Remove(path)
			}
			n, err := open(t, "version = 4\n[plugins.'io.containerd.sandbox.controller.v1.vmm']\n"+c.plugin+
				"[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.h]\nsandboxer = '"+c.sandboxer+
				"'\n[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.h.options]\n"+c.options)
			if err != nil {
				t.Fatal(err)
			}
			r, err := n.Check(t.Context(), []string{c.sandboxer})
			if err != nil {
				t.Fatal(err)
			}
			p := part(t, r, c.part)
			if r.OK != c.ok || p.Grade != c.grade || !strings.Contains(p.Detail, c.says) {
				t.Errorf("%t, %+v", r.OK, p)
			}
			for _, p := range r.Sandboxers[0].Parts {
				if strings.HasSuffix(p.Detail, ": unavailable") || strings.Contains(p.Detail, "\n") {
					t.Errorf("not brief: %+v", p)
				}
			}
		})
	}
}

// What no runtime handler uses may be missing, unless somebody asks for it.
func TestRequired(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	n, err := open(t, "version = 4\n[plugins.'io.containerd.sandbox.controller.v1.vmm']\nkernel = '/nonexistent'\n")
	if err != nil {
		t.Fatal(err)
	}
	for name, names := range map[string][]string{"not asked for": nil, "asked for": {"vmm"}} {
		r, err := n.Check(t.Context(), names)
		if err != nil {
			t.Fatal(err)
		}
		last := r.Sandboxers[len(r.Sandboxers)-1]
		if last.Sandboxer != "vmm" || last.OK || last.Required != (names != nil) {
			t.Errorf("%s: %+v", name, last)
		}
	}
	if _, err := n.Check(t.Context(), []string{"lxc"}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("unknown sandboxer: %v", err)
	}
}

// noDaemon is a node with records and without a daemon.
func noDaemon(t *testing.T) *Node {
	t.Helper()
	n := &Node{State: t.TempDir(), Address: "/nonexistent"}
	for id, s := range map[string]struct{ sandboxer, name, state, backend string }{
		"aaa1": {"runc", "web", "running", `{}`},
		"aab2": {"vmm", "vm", "running", `{"hypervisor":"qemu","accel":"tcg","cpus":2,"memory":134217728,"processes":{"vmm":{"pid":7}}}`},
		"bbb3": {"vmm", "debug", "running", `{"hypervisor":"qemu","key":"AAAA","cpus":1,"memory":2097152,"processes":{"vmm":{"pid":8}}}`},
		"bbb4": {"vmm", "twin", "stopped", `{"key":"AAAA","stopped":true,"processes":{"vmm":{"pid":9}}}`},
		"ccc5": {"wasm", "twin", "created", ``},
	} {
		dir := n.dir(s.sandboxer, id)
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		state := map[string]any{"state": s.state}
		if s.backend != "" {
			state["backend"] = rawJSON(s.backend)
		}
		plan := map[string]any{"spec": sandbox.Spec{
			ID: id, Namespace: "k8s.io", CreatedAt: time.Now().Add(-time.Hour),
			Config: &runtime.PodSandboxConfig{Metadata: &runtime.PodSandboxMetadata{Name: s.name, Namespace: "default"}},
		}}
		for file, v := range map[string]any{"state.json": state, "sandbox.json": plan} {
			if err := record.Write(filepath.Join(dir, file), v); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, dir := range []string{n.dir("runc", "empty"), n.dir("runc", "broken"), n.dir("worker")} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(n.dir("runc", "broken", "state.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	return n
}

type rawJSON string

// MarshalJSON implements json.Marshaler.
func (r rawJSON) MarshalJSON() ([]byte, error) { return []byte(r), nil }

func TestSandboxes(t *testing.T) {
	n := noDaemon(t)
	all, offline, err := n.Sandboxes(t.Context())
	if err != nil || offline == nil {
		t.Fatalf("%v, %v", offline, err)
	}
	by := map[string]Sandbox{}
	for _, s := range all {
		by[s.ID] = s
	}
	if len(by) != 6 {
		t.Errorf("%+v", all)
	}
	if s := by["aab2"]; s.VMM != "qemu" || s.Acceleration != "tcg" || s.VCPUs != 2 || s.Memory != 128<<20 || s.Pid != 7 || s.Debug || s.Name != "vm" || s.State != "running" {
		t.Errorf("%+v", s)
	}
	if !by["bbb3"].Debug || by["broken"].State != "damaged" || by["broken"].Reason == "" {
		t.Errorf("%+v", all)
	}
	var out bytes.Buffer
	if err := Print(&out, all, time.Now()); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"128 MiB", "qemu (tcg)", "About an hour", "broken: "} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is not in %s", want, out.String())
		}
	}
}

func TestMachine(t *testing.T) {
	n := noDaemon(t)
	for name, c := range map[string]struct{ pod, says string }{
		"its id":         {"bbb3", ""},
		"part of its id": {"aab", ""},
		"its name":       {"debug", ""},
		"namespace":      {"default/debug", ""},
		"none":           {"nosuch", "not found"},
		"empty":          {"", "no pod is named"},
		"two ids":        {"bbb", "can be bbb3, bbb4"},
		"two names":      {"twin", "can be"},
		"no machine":     {"web", "of the sandboxer runc"},
		"broken":         {"broken", "of the sandboxer runc"},
	} {
		_, err := n.Machine(t.Context(), c.pod)
		if c.says == "" && err != nil || c.says != "" && (err == nil || !strings.Contains(err.Error(), c.says)) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for pod, says := range map[string]string{"vm": "debug = true", "bbb4": "does not run", "debug": "unavailable"} {
		m, err := n.Machine(t.Context(), pod)
		if err != nil {
			t.Fatal(err)
		}
		if err := m.Run(t.Context(), []string{"ps"}, io.Discard); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v", pod, err)
		}
	}
}

func TestSplit(t *testing.T) {
	for line, want := range map[string][]string{
		"":                     nil,
		"  ":                   nil,
		"ps":                   {"ps"},
		" cat  /a\t/b ":        {"cat", "/a", "/b"},
		`cat '/a b' "it's" ''`: {"cat", "/a b", "it's", ""},
		`a"b c"d`:              {"ab cd"},
	} {
		if got, err := split(line); err != nil || !slices.Equal(got, want) {
			t.Errorf("%q: %q, %v", line, got, err)
		}
	}
	if _, err := split("cat 'a"); !errdefs.IsInvalidArgument(err) {
		t.Errorf("open quote: %v", err)
	}
}

// fakeGuest says what it is asked, or fails as it is told.
type fakeGuest map[string]error

func (g fakeGuest) Run(_ context.Context, args []string, out io.Writer) error {
	if err := g[args[0]]; err != nil {
		return err
	}
	_, err := io.WriteString(out, strings.Join(args, "|")+"\n")
	return err
}

func TestSession(t *testing.T) {
	lost := errdefs.ErrUnavailable
	for name, c := range map[string]struct {
		in, out, errs string
		err           error
	}{
		"end":         {"a b\n\nc", "> a|b\n> > c\n> ", "", nil},
		"exit":        {"a\nexit\nb\n", "> a\n> ", "", nil},
		"goes on":     {"bad\n'\na\n", "> > > a\n> ", "bad\na quote ' is not closed\n", nil},
		"interrupted": {"slow\na\n", "> > a\n> ", "", nil},
		"lost":        {"lost\na\n", "> ", "", lost},
	} {
		var out, errs bytes.Buffer
		err := Session{
			Runner: fakeGuest{"bad": errors.New("bad"), "slow": context.Canceled, "lost": lost},
			Prompt: "> ", In: strings.NewReader(c.in), Out: &out, Errs: &errs, Each: context.WithCancel,
		}.Run(t.Context())
		if !errors.Is(err, c.err) || out.String() != c.out || errs.String() != c.errs {
			t.Errorf("%s: %q, %q, %v", name, out.String(), errs.String(), err)
		}
	}
}

// What a guest says does not reach the terminal's ear.
func TestSafe(t *testing.T) {
	var out bytes.Buffer
	s := &safe{out: &out}
	for _, b := range []string{"a\tb\n\x1b[2J", "\xc3", "\xa4\r\xff\u009b"} {
		if n, err := s.Write([]byte(b)); n != len(b) || err != nil {
			t.Fatal(n, err)
		}
	}
	if want := "a\tb\n\ufffd[2Jä\ufffd\ufffd\ufffd"; out.String() != want {
		t.Errorf("%q", out.String())
	}
	if got := clean("a\nb\x1b"); got != "a\ufffdb\ufffd" {
		t.Errorf("%q", got)
	}
}

func TestSafeFile(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if Safe(f) != io.Writer(f) {
		t.Error("a file is no terminal: it gets what is said")
	}
}
