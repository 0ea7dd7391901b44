package e2e

import (
	"bufio"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"path"
	"slices"
	"strings"
	"testing"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	"github.com/containerd-kuasar/containerd-kuasar/ctl"
	"github.com/containerd-kuasar/containerd-kuasar/internal/trace"
	"github.com/containerd-kuasar/containerd-kuasar/test/bed"
)

// The chains of phases that calls have, from the call to what its time goes into.
// Beside them there are others, and containerd's own in between.
var (
	runcChains = map[string][]string{
		"RunPodSandbox":   {"sandbox.Create", "sandbox.Start runc.namespaces", "sandbox.Start runc.worker"},
		"CreateContainer": nil,
		"StartContainer": {
			"task.Create runc.prepare", "task.Create agent.Create agent.stdio", "task.Create agent.Create agent.process",
			"task.Start agent.Start agent.program",
		},
	}
	vmChains = map[string][]string{
		"RunPodSandbox": {
			"sandbox.Create", "sandbox.Start vmm.boot vmm.network", "sandbox.Start vmm.boot vmm.vsock", "sandbox.Start vmm.boot vmm.share",
			"sandbox.Start vmm.boot vmm.machine qemu.launch", "sandbox.Start vmm.boot vmm.guest agent.kernel",
			"sandbox.Start vmm.boot vmm.guest agent.init", "sandbox.Start vmm.boot vmm.guest agent.serve",
			"sandbox.Start vmm.boot vmm.setup agent.Setup agent.share", "sandbox.Start vmm.boot vmm.setup agent.Network agent.interface",
		},
		"CreateContainer": nil,
		"StartContainer": {
			"task.Create vmm.prepare", "task.Create agent.Create agent.stdio", "task.Create agent.Create agent.process",
			"task.Start agent.Start agent.program",
		},
	}
)

// has says whether a call has a chain of phases.
func has(c ctl.Call, chain string) bool {
	names := strings.Fields(chain)
	return slices.ContainsFunc(c.Spans, func(s ctl.Span) bool {
		for i := len(names) - 1; i >= 0; i-- {
			above := slices.IndexFunc(c.Spans, func(a ctl.Span) bool { return a.ID == s.Parent })
			if s.Name != names[i] || above < 0 {
				return false
			}
			s = c.Spans[above]
		}
		// What is above is containerd's.
		return !strings.Contains(strings.Join(names, " "), s.Name)
	})
}

// method is the name of a CRI call.
func method(c ctl.Call) string { return path.Base(c.Spans[0].Name) }

// check holds that calls have their phases, each within the one above.
func check(t *testing.T, calls []ctl.Call, chains map[string][]string) {
	t.Helper()
	if len(calls) != len(chains) {
		t.Errorf("%d calls", len(calls))
	}
	for _, c := range calls {
		want, known := chains[method(c)]
		if !known {
			t.Errorf("call %s", c.Spans[0].Name)
		}
		missing := slices.DeleteFunc(slices.Clone(want), func(chain string) bool { return has(c, chain) })
		if len(missing) > 0 {
			var text strings.Builder
			_ = c.Waterfall(&text, 120)
			t.Errorf("%s: no %q in\n%s", method(c), missing, text.String())
		}
		for i, s := range c.Spans {
			if s.Trace != c.Spans[0].Trace {
				t.Errorf("%s: %s is of another trace", method(c), s.Name)
			}
			if s.Ours && (s.Begin.Before(c.Spans[0].Begin) || s.End.After(c.Spans[0].End) || s.End.Before(s.Begin)) {
				t.Errorf("%s: %s from %v to %v, of a call from %v to %v", method(c), s.Name, s.Begin, s.End, c.Spans[0].Begin, c.Spans[0].End)
			}
			if strings.HasPrefix(s.Name, "task.Start") && s.Attributes[trace.Process] == "" {
				t.Errorf("%s: span %d, %s, names no process", method(c), i, s.Name)
			}
		}
	}
}

// collect serves OTLP, and returns calls about pods of ours, as they end.
func collect(t *testing.T) (endpoint string, calls <-chan ctl.Call) {
	t.Helper()
	all := make(chan ctl.Call, 1000)
	batches := make(chan *tracepb.TracesData)
	go func() {
		defer close(all)
		var g ctl.Gatherer
		for b := range batches {
			for _, s := range ctl.Spans(b) {
				if c, ended := g.Add(s); ended && c.Sandbox != "" {
					all <- c
				}
			}
		}
	}()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var request collector.ExportTraceServiceRequest
		b, err := io.ReadAll(r.Body)
		if err == nil {
			err = proto.Unmarshal(b, &request)
		}
		if err != nil || r.URL.Path != "/v1/traces" {
			t.Errorf("%s: %v", r.URL, err)
			return
		}
		batches <- &tracepb.TracesData{ResourceSpans: request.ResourceSpans}
	}))
	t.Cleanup(func() {
		server.Close()
		close(batches)
	})
	return server.URL, all
}

// One trace covers a call from CRI to the container's process, and reaches a
// collector.
func TestTraceExport(t *testing.T) {
	endpoint, calls := collect(t)
	b := newBed(t, bed.Options{Environ: []string{"OTEL_EXPORTER_OTLP_ENDPOINT=" + endpoint, "OTEL_BSP_SCHEDULE_DELAY=100"}})
	for handler, chains := range map[string]map[string][]string{bed.Runc: runcChains, bed.VMM: vmChains} {
		t.Run(handler, func(t *testing.T) {
			if handler == bed.VMM {
				bed.RequireVMM(t)
			}
			n := on(t, b, handler)
			p := n.pod(nil)
			n.run(p, nil)
			var its []ctl.Call
			for len(its) < len(chains) {
				select {
				case c := <-calls:
					if _, known := chains[method(c)]; known && c.Sandbox == p.ID {
						its = append(its, c)
					}
				case <-n.ctx.Done():
					t.Fatalf("%d calls have come", len(its))
				}
			}
			check(t, its, chains)
			ids := map[string]any{}
			for _, c := range its {
				ids[c.Spans[0].Trace] = nil
			}
			equal(t, "traces of three calls", len(ids), 3)
		})
	}
}

// traced runs kuasar-ctl trace, and returns when calls are traced.
func (n *fixture) traced(args ...string) (cmd *exec.Cmd, out io.Reader) {
	n.t.Helper()
	cmd = n.KuasarCtl(n.ctx, append([]string{"trace"}, args...)...)
	out, err := cmd.StdoutPipe()
	n.must(err)
	says, err := cmd.StderrPipe()
	n.must(err)
	n.must(cmd.Start())
	line, err := bufio.NewReader(says).ReadString('\n')
	if err != nil || !strings.Contains(line, "traced from now on") {
		n.t.Fatalf("kuasar-ctl trace: %q, %v", line, err)
	}
	return cmd, out
}

// An operator watches calls of a daemon that was told nothing of tracing, and a
// client's own trace goes on in it.
func TestCtlTrace(t *testing.T) {
	b := newBed(t, bed.Options{})
	for handler, chains := range map[string]map[string][]string{bed.Runc: runcChains, bed.VMM: vmChains} {
		t.Run(handler, func(t *testing.T) {
			if handler == bed.VMM {
				bed.RequireVMM(t)
			}
			n := on(t, b, handler)
			const id = "0af7651916cd43dd8448eb211c80319c"
			background := n.ctx
			n.ctx = metadata.AppendToOutgoingContext(n.ctx, "traceparent", "00-"+id+"-b7ad6b7169203331-01")
			cmd, out := n.traced("--json", "--count", "3")
			p := n.pod(nil)
			c := n.run(p, nil)
			var its []ctl.Call
			lines := bufio.NewScanner(out)
			for lines.Buffer(nil, 1<<20); lines.Scan(); {
				var c ctl.Call
				n.must(json.Unmarshal(lines.Bytes(), &c))
				its = append(its, c)
				equal(t, "trace", c.Spans[0].Trace, id)
				equal(t, "sandbox", c.Sandbox, p.ID)
				equal(t, "pod", c.Pod, "default/"+p.Config.Metadata.Name)
			}
			n.must(cmd.Wait())
			check(t, its, chains)

			n.ctx = background
			cmd, out = n.traced("--count", "1", p.ID[:12])
			n.exec(c, "true")
			text, err := io.ReadAll(out)
			n.must(err)
			n.must(cmd.Wait())
			contains(t, "waterfall", string(text), "RuntimeService/ExecSync", "default/"+p.Config.Metadata.Name, " task.Exec", " agent.Start", "█")
		})
	}
	n := on(t, b, bed.Runc)
	cmd, out := n.traced()
	n.must(n.Stop(n.ctx))
	text, err := io.ReadAll(out)
	n.must(err)
	if err := cmd.Wait(); err == nil {
		t.Errorf("it watches no daemon: %q", text)
	}
	n.must(n.Start(n.ctx))
}
