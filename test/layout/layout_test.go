// Package layout holds what a compiler does not: which package may import
// which, and what no file may have.
package layout

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

const root = "../.."

// rule is one of depguard's.
type rule struct {
	Files []string
	Deny  []struct{ Pkg, Desc string }
}

// rules are read from where golangci-lint has them: there is one truth.
func rules(t *testing.T) map[string]rule {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(root, ".golangci.yml"))
	if err != nil {
		t.Fatal(err)
	}
	var config struct {
		Linters struct {
			Settings struct {
				Depguard struct{ Rules map[string]rule }
			}
		}
	}
	if err := yaml.Unmarshal(raw, &config); err != nil {
		t.Fatal(err)
	}
	if len(config.Linters.Settings.Depguard.Rules) == 0 {
		t.Fatal("no depguard rules in .golangci.yml")
	}
	return config.Linters.Settings.Depguard.Rules
}

// covers says whether a rule is for a file: some pattern matches and none
// that begins with an exclamation mark.
func (r rule) covers(path string) bool {
	covered := false
	for _, pattern := range r.Files {
		if exception, ok := strings.CutPrefix(pattern, "!"); ok {
			if glob(exception).MatchString(path) {
				return false
			}
			continue
		}
		covered = covered || glob(pattern).MatchString(path)
	}
	return covered
}

// glob makes a regular expression of a pattern in which ** passes slashes.
func glob(pattern string) *regexp.Regexp {
	quoted := regexp.QuoteMeta(pattern)
	for _, replacement := range [][2]string{{`\*\*/`, `(.*/)?`}, {`\*\*`, `.*`}, {`\*`, `[^/]*`}} {
		quoted = strings.ReplaceAll(quoted, replacement[0], replacement[1])
	}
	return regexp.MustCompile("^" + quoted + "$")
}

// denies returns why a package may not be imported.
func (r rule) denies(pkg string) (string, bool) {
	for _, deny := range r.Deny {
		if pkg == deny.Pkg || strings.HasPrefix(pkg, deny.Pkg+"/") {
			return deny.Desc, true
		}
	}
	return "", false
}

// each parses every Go file of the module that is not generated.
func each(t *testing.T, mode parser.Mode, f func(path string, files *token.FileSet, file *ast.File)) {
	t.Helper()
	files := token.NewFileSet()
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, _ := filepath.Rel(root, path)
		if entry.IsDir() {
			if name == "build" || name == "bin" || name == "test/tools" || strings.HasPrefix(name, ".") && name != "." {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, ".pb.go") {
			return nil
		}
		file, err := parser.ParseFile(files, path, nil, mode)
		if err != nil {
			return err
		}
		f(name, files, file)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestImports(t *testing.T) {
	rules := rules(t)
	seen := 0
	each(t, parser.ImportsOnly, func(path string, _ *token.FileSet, file *ast.File) {
		seen++
		for name, rule := range rules {
			if !rule.covers(path) {
				continue
			}
			for _, spec := range file.Imports {
				pkg, err := strconv.Unquote(spec.Path.Value)
				if err != nil {
					t.Fatal(err)
				}
				if why, denied := rule.denies(pkg); denied {
					t.Errorf("%s imports %s: %s (rule %q of .golangci.yml)", path, pkg, why, name)
				}
			}
		}
	})
	if seen == 0 {
		t.Error("no file was looked at")
	}
}

func TestCovers(t *testing.T) {
	r := rule{Files: []string{"**/task/**", "!**/cmd/**"}}
	for path, want := range map[string]bool{
		"task/client.go": true, "task/a/b.go": true, "x/task/a.go": true, "cmd/task/a.go": false, "tasks/a.go": false, "task.go": false,
	} {
		if got := r.covers(path); got != want {
			t.Errorf("covers(%q) = %t", path, got)
		}
	}
}

// TestSleep holds that nobody waits for time to pass: neither code nor tests.
func TestSleep(t *testing.T) {
	each(t, 0, func(_ string, files *token.FileSet, file *ast.File) {
		ast.Inspect(file, func(node ast.Node) bool {
			selector, ok := node.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			if pkg, ok := selector.X.(*ast.Ident); ok && pkg.Name == "time" && selector.Sel.Name == "Sleep" {
				t.Errorf("%s: time.Sleep: wait on an event", files.Position(node.Pos()))
			}
			return true
		})
	})
}

// TestAgent holds that kuasar-task stays small: nothing of the daemon is
// linked into it, by whatever way.
func TestAgent(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), "go", "list", "-deps", "-tags", "seccomp", "./cmd/kuasar-task")
	cmd.Dir = root
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	deps := strings.Fields(string(out))
	if len(deps) == 0 {
		t.Fatal("no dependencies")
	}
	for _, dep := range deps {
		for _, prefix := range []string{
			"github.com/containerd-kuasar/containerd-kuasar/plugins",
			"github.com/containerd-kuasar/containerd-kuasar/sandbox",
			"github.com/containerd-kuasar/containerd-kuasar/runc",
			"github.com/containerd/containerd/v2/client",
			"github.com/containerd/containerd/v2/cmd",
			"github.com/containerd/containerd/v2/internal/cri",
			"github.com/containerd/containerd/v2/plugins",
			"github.com/bytecodealliance/wasmtime-go", // it has a program of its own
			"github.com/containerd/plugin",
			"google.golang.org/grpc/internal/transport",
			"k8s.io",
		} {
			if dep == prefix || strings.HasPrefix(dep, prefix+"/") {
				t.Errorf("kuasar-task has %s in it", dep)
			}
		}
	}
}
