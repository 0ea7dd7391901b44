// Package critest runs the conformance suite of Kubernetes' CRI against the
// handlers of one daemon and compares them.
package critest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/containerd-kuasar/containerd-kuasar/test/bed"
	"github.com/containerd-kuasar/containerd-kuasar/test/images"
)

// Result is what became of one case.
type Result struct {
	State   string // ginkgo's: passed, failed, skipped, …
	Message string // why it failed or was skipped
}

// Passed says whether the case ran and passed.
func (r Result) Passed() bool { return r.State == "passed" }

// Skipped says whether the case did not run.
func (r Result) Skipped() bool { return r.State == "skipped" || r.State == "pending" || r.State == "" }

// Results are those of one run by the case's full name.
type Results map[string]Result

// Run runs the suite against a handler, nodes cases at a time, but for the cases
// that skip, a regular expression, matches. A case that fails is no error.
func Run(ctx context.Context, b *bed.Bed, handler string, nodes int, skip string) (Results, error) {
	dir := filepath.Join(b.Dir, "critest", handler)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	// ginkgo takes a suite for compiled by its name.
	suite := filepath.Join(dir, "critest.test")
	if err := os.Symlink(b.Path("build/critest"), suite); err != nil {
		return nil, err
	}
	list := filepath.Join(dir, "images.yaml")
	if err := os.WriteFile(list, []byte(imageList(handler)), 0o644); err != nil {
		return nil, err
	}
	report := filepath.Join(dir, "report.json")
	cmd := exec.CommandContext(ctx, b.Path("build/ginkgo"),
		"--nodes="+strconv.Itoa(nodes), "--skip="+skip, "--json-report=report.json", "--output-dir="+dir, "--no-color", "--succinct",
		suite, "--",
		"-config="+filepath.Join(b.Dir, "crictl.yaml"), "-test-images-file="+list,
		"-runtime-endpoint=unix://"+b.Socket(), "-runtime-handler="+handler)
	cmd.Dir = dir
	out, runErr := cmd.CombinedOutput()
	results, err := read(report)
	if err != nil {
		return nil, fmt.Errorf("run critest on %s: %w", handler, errors.Join(err, runErr, errors.New(string(out))))
	}
	return results, nil
}

// imageList names the images that are not critest's own.
func imageList(handler string) string {
	if handler == bed.Wasm {
		return "defaultTestContainerImage: " + images.Box + "\n"
	}
	return ""
}

// read takes the cases from ginkgo's report.
func read(path string) (Results, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var suites []struct {
		SpecReports []struct {
			ContainerHierarchyTexts []string
			LeafNodeType            string
			LeafNodeText            string
			State                   string
			Failure                 struct{ Message string }
		}
	}
	if err := json.Unmarshal(raw, &suites); err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	results := make(Results)
	for _, suite := range suites {
		for _, spec := range suite.SpecReports {
			name := strings.TrimPrefix(strings.Join(append(spec.ContainerHierarchyTexts, spec.LeafNodeText), " "), "[k8s.io] ")
			if spec.LeafNodeType != "It" || strings.Contains(name, " benchmark ") {
				continue
			}
			results[name] = Result{spec.State, spec.Failure.Message}
		}
	}
	if len(results) == 0 {
		return nil, fmt.Errorf("read %s: no case ran", path)
	}
	return results, nil
}
