package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/containerd-kuasar/containerd-kuasar/test/bed"
	"github.com/containerd-kuasar/containerd-kuasar/wasm"
)

// step is a column of the table.
type step struct {
	name string
	do   func(ctx context.Context, p *pod) error
}

var steps = []step{
	{"run pod", runPod},
	{"start", start},
	{"logs", logs},
	{"exec", execute},
	{"stats", stats},
	{"forward", forward},
	{"stop", stopPod},
	{"remove", remove},
}

// pod is what the steps of one handler share.
type pod struct {
	*bed.Bed
	handler   handler
	podFile   string // crictl's configuration of the pod
	id        string
	container string
	web       string
	log       *bed.Container
	before    map[string]int // helper processes without the pod
	helpers   map[string]int // those that came with it
}

// show runs all steps of a handler until one fails.
func show(ctx context.Context, b *bed.Bed, h handler) row {
	r := row{handler: h}
	if r.missing = h.missing(); r.missing != "" {
		fmt.Printf("\n%s: needs %s\n", h.name, r.missing)
		return r
	}
	fmt.Printf("\n%s (%s)\n", h.name, h.kind)
	if h.prepare != nil {
		if r.err = h.prepare(b, ctx); r.err != nil {
			fmt.Printf("  prepare  failed: %v\n", r.err)
			return r
		}
	}
	p := &pod{Bed: b, handler: h}
	for _, s := range steps {
		began := time.Now()
		switch err := s.do(ctx, p); {
		case errors.Is(err, errNothing):
			r.times = append(r.times, -1)
			continue
		case err != nil:
			fmt.Printf("  %-8s failed: %v\n", s.name, err)
			r.err = fmt.Errorf("%s: %s: %w", h.name, s.name, err)
			return r
		}
		took := time.Since(began)
		r.helpers = p.helpers
		r.times = append(r.times, took)
		fmt.Printf("  %-8s %4d ms\n", s.name, took.Milliseconds())
	}
	return r
}

func (p *pod) crictl(ctx context.Context, args ...string) (string, error) {
	return bed.Output(p.Crictl(ctx, args...))
}

func runPod(ctx context.Context, p *pod) (err error) {
	if p.before, err = bed.Helpers(); err != nil {
		return err
	}
	config := p.PodConfig()
	if p.handler.engine != "" {
		config.Annotations = map[string]string{wasm.Annotation: p.handler.engine}
	}
	if p.podFile, err = p.write("pod", config); err != nil {
		return err
	}
	p.log = &bed.Container{Pod: &bed.Pod{Config: config}, Config: &runtime.ContainerConfig{LogPath: "hello.log"}}
	p.id, err = p.crictl(ctx, "runp", "--runtime", p.handler.name, p.podFile)
	return err
}

// start starts two containers: one that says something, and a web server where
// there can be one.
func start(ctx context.Context, p *pod) (err error) {
	w := p.handler.work
	if p.container, err = p.startContainer(ctx, "hello", w.image, w.command...); err != nil {
		return err
	}
	if w.web != "" {
		if p.web, err = p.startContainer(ctx, "web", w.web); err != nil {
			return err
		}
	}
	if p.helpers, err = bed.Helpers(); err != nil {
		return err
	}
	for kind, n := range p.before {
		p.helpers[kind] -= n
	}
	return nil
}

func (p *pod) startContainer(ctx context.Context, name, image string, command ...string) (string, error) {
	file, err := p.write(name, &runtime.ContainerConfig{
		Metadata: &runtime.ContainerMetadata{Name: name},
		Image:    &runtime.ImageSpec{Image: image},
		Command:  command,
		LogPath:  name + ".log",
		Linux: &runtime.LinuxContainerConfig{SecurityContext: &runtime.LinuxContainerSecurityContext{
			NamespaceOptions: p.log.Pod.Config.Linux.SecurityContext.NamespaceOptions,
		}},
	})
	if err != nil {
		return "", err
	}
	id, err := p.crictl(ctx, "create", p.id, file, p.podFile)
	if err != nil {
		return "", err
	}
	return p.crictl(ctx, "start", id)
}

func logs(ctx context.Context, p *pod) error {
	says := p.handler.work.says
	if err := p.log.AwaitLog(ctx, says); err != nil {
		return err
	}
	return p.expect(ctx, says, "logs", p.container)
}

func execute(ctx context.Context, p *pod) error {
	w := p.handler.work
	return p.expect(ctx, w.answer, append([]string{"exec", p.container}, w.exec...)...)
}

func stats(ctx context.Context, p *pod) error {
	return p.expect(ctx, "hello", "stats", "--id", p.container)
}

var forwarding = regexp.MustCompile(`127\.0\.0\.1:\d+`)

// forward fetches the web server's page through crictl port-forward.
func forward(ctx context.Context, p *pod) error {
	if p.web == "" {
		return errNothing
	}
	// The server may still be about to listen.
	const serves = "until wget -q -O /dev/null http://127.0.0.1/ 2>/dev/null; do :; done"
	if _, err := p.crictl(ctx, "exec", "--timeout", "10", p.web, "sh", "-c", serves); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	cmd := p.Crictl(ctx, "port-forward", p.id, ":80")
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	defer func() {
		cancel()
		_ = cmd.Wait() // it is killed
	}()
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		return fmt.Errorf("crictl port-forward: %w", err)
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+forwarding.FindString(line), nil)
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	page, err := io.ReadAll(response.Body)
	if err != nil || !strings.Contains(string(page), "Welcome") {
		return fmt.Errorf("the page is %q: %w", page, err)
	}
	return nil
}

func stopPod(ctx context.Context, p *pod) error {
	_, err := p.crictl(ctx, "stopp", p.id)
	return err
}

func remove(ctx context.Context, p *pod) error {
	_, err := p.crictl(ctx, "rmp", p.id)
	return err
}

// expect runs crictl and looks for a text in what it prints.
func (p *pod) expect(ctx context.Context, text string, args ...string) error {
	out, err := p.crictl(ctx, args...)
	if err == nil && !strings.Contains(out, text) {
		err = fmt.Errorf("crictl %s prints %q, want %q in it", args[0], out, text)
	}
	return err
}

// write writes a configuration for crictl.
func (p *pod) write(name string, config any) (string, error) {
	raw, err := json.Marshal(config)
	if err != nil {
		return "", err
	}
	path := filepath.Join(p.Dir, p.handler.name+p.handler.engine+"-"+name+".json")
	return path, os.WriteFile(path, raw, 0o600)
}

func nothing() string { return "" }

func wasmEdge() string {
	if _, err := os.Stat("build/wasmedge/wasmedge"); err == nil {
		return ""
	}
	return program("wasmedge")()
}

// program is for handlers that need a program in PATH.
func program(name string) func() string {
	return func() string {
		if _, err := exec.LookPath(name); err != nil {
			return "the program " + name
		}
		return ""
	}
}
