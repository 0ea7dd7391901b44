package critest

import (
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd-kuasar/containerd-kuasar/test/bed"
)

var (
	handlers = flag.String("handlers", bed.Stock+","+bed.Runc+","+bed.Wasm+","+bed.VMM, "handlers to run, the one to compare with first")
	nodes    = flag.Int("nodes", 6, "cases that run at a time: most wait for most of their time")
	update   = flag.Bool("update", os.Getenv("KUASAR_CRITEST_UPDATE") != "", "write docs/critest.md")
)

// machines are as many cases at a time of pods in virtual machines: emulated, each
// takes most of a processor, and some cases have only seconds.
const machines = 3

func TestMain(m *testing.M) { bed.Main(m) }

// TestCritest holds that what the stock runtime passes here, ours passes.
func TestCritest(t *testing.T) {
	// As it is released: go-cni, built with the race detector, takes networks
	// that are set up at the same time for a deadlock and ends the daemon.
	binary, err := filepath.Abs("../../bin/containerd-kuasar")
	if err != nil {
		t.Fatal(err)
	}
	b := bed.Test(t, bed.Options{Binary: binary})
	table := Table{Handlers: strings.Split(*handlers, ",")}
	if lack := bed.LackOfVMM(); lack != "" && os.Getenv(bed.Strict) == "" {
		t.Logf("%s is left out: it needs %s", bed.VMM, lack)
		table.Handlers = slices.DeleteFunc(table.Handlers, func(h string) bool { return h == bed.VMM })
	}
	for _, handler := range table.Handlers {
		start := time.Now()
		n := *nodes
		if handler == bed.VMM {
			n = min(n, machines)
		}
		results, err := Run(t.Context(), b, handler, n, "benchmark")
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s: %d cases in %s", handler, len(results), time.Since(start).Round(time.Second))
		table.Results = append(table.Results, results)
	}
	var out strings.Builder
	if err := table.Write(&out, excluded); err != nil {
		t.Fatal(err)
	}
	t.Logf("\n%s", out.String())
	for _, difference := range table.Differences(excluded) {
		t.Error(difference)
	}
	if *update && !t.Failed() {
		if err := os.WriteFile(b.Path("docs/critest.md"), []byte(heading+out.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

const heading = `# critest

The conformance suite of Kubernetes' container runtime interface, cri-tools
v1.36.0, run against four handlers of one daemon: containerd's own shim with
Debian's runc, which has no user namespaces for pods before version 1.2, and the
sandboxers runc, wasm and vmm. ` + "`make critest-docs`" + ` runs it again and
writes this file.

For the wasm sandboxer the suite's default image is one of WebAssembly: a module
with a shell and a few tools, at the paths and under the names that the suite
asks for. Cases that are about Linux programs fail and are listed with why. One
that fails and is not listed, or is listed and passes, fails the build. Some that
hold that a thing is refused pass because no module could do it.

`
