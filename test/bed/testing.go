package bed

import (
	"cmp"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd-kuasar/containerd-kuasar/task/wasm/engine"
)

// startTimeout bounds the daemon's start, a loaded machine included.
var startTimeout = Patience(time.Minute)

// Require skips a test where a bed cannot be, and names what is missing.
func Require(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	root, err := findRoot()
	if err != nil {
		t.Fatal(err)
	}
	for path, remedy := range map[string]string{
		root + "/bin/containerd-kuasar": "make build",
		root + "/bin/kuasar-ctl":        "make build",
		root + "/" + raceBinary:         "make bed",
		root + "/build/images/web":      "make bed",
		root + "/build/modules":         "make bed",
		"/bin/busybox":                  "hack/install",
		"/usr/sbin/runc":                "hack/install",
		pluginDir + "/bridge":           "hack/install",
	} {
		if _, err := os.Stat(path); err != nil {
			lack(t, path+" ("+remedy+")")
		}
	}
}

// RequireEngine skips a test where a Wasm engine is missing that does not come
// with the build.
func RequireEngine(t testing.TB, name string) {
	t.Helper()
	if !HasEngine(name) {
		lack(t, name+" (hack/wasmedge)")
	}
}

// HasEngine says whether the daemon of a bed finds a Wasm engine.
func HasEngine(name string) bool {
	if name != engine.WasmEdge {
		return true
	}
	if root, err := findRoot(); err == nil {
		if _, err := os.Stat(root + "/build/wasmedge/wasmedge"); err == nil {
			return true
		}
	}
	_, err := exec.LookPath("wasmedge")
	return err == nil
}

// RequireVMM skips a test where no virtual machine can be.
func RequireVMM(t testing.TB) {
	t.Helper()
	Require(t)
	if what := LackOfVMM(); what != "" {
		lack(t, what)
	}
}

// Strict is the environment variable that makes tests fail which miss what
// hack/install gets, instead of being skipped.
const Strict = "KUASAR_TEST_STRICT"

func lack(t testing.TB, what string) {
	t.Helper()
	if os.Getenv(Strict) != "" {
		t.Fatalf("needs %s, and %s is set", what, Strict)
	}
	t.Skip("needs " + what)
}

// Guest is the environment variable that names the directory of another guest
// than that of `make guest`, in the repository.
const Guest = "KUASAR_TEST_GUEST"

// GuestDir is where the guest of a bed's virtual machines is, in the repository.
func GuestDir() string { return cmp.Or(os.Getenv(Guest), "build/guest") }

// LackOfVMM names what is missing for a bed's virtual machines, and where it
// comes from; empty if nothing is.
func LackOfVMM() string {
	root, err := findRoot()
	if err != nil {
		return err.Error()
	}
	for _, file := range []string{"vmlinux", "initramfs.cpio"} {
		if _, err := os.Stat(filepath.Join(root, GuestDir(), file)); err != nil {
			return filepath.Join(GuestDir(), file) + " (make guest)"
		}
	}
	for _, program := range []string{"qemu-system-x86_64", "vhost-device-vsock"} {
		if _, err := exec.LookPath(program); err != nil {
			return program + " (hack/install)"
		}
	}
	return ""
}

// Daemon is the environment variable that names another daemon to test than
// that built with the race detector, which is slow in a machine that is.
const Daemon = "KUASAR_TEST_DAEMON"

// raceBinary is the daemon that is tested, built with the race detector.
const raceBinary = "build/race/containerd-kuasar"

// Test makes a bed, starts its daemon and clears it at the end of the test,
// which fails if its pods leak or our code races.
func Test(t testing.TB, options Options) *Bed {
	t.Helper()
	Require(t)
	if options.Binary == "" {
		root, err := findRoot()
		if err != nil {
			t.Fatal(err)
		}
		options.Binary = cmp.Or(os.Getenv(Daemon), filepath.Join(root, raceBinary))
	}
	each, r := options.Log, &races{}
	options.Log = func(line string) {
		r.line(line)
		if each != nil {
			each(line)
		}
	}
	t.Cleanup(func() {
		for _, report := range r.found() {
			t.Error(report)
		}
	})
	b, err := New(options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.finish(t) })
	ctx, cancel := context.WithTimeout(t.Context(), startTimeout)
	defer cancel()
	if err := b.Start(ctx); err != nil {
		t.Fatal(err)
	}
	return b
}

func (b *Bed) finish(t testing.TB) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	if b.running() {
		if err := b.removeAll(ctx); err != nil {
			t.Error(err)
		} else if leaks, err := b.Leaks(ctx); err != nil {
			t.Error(err)
		} else if len(leaks) > 0 {
			t.Errorf("leaks:\n%s", strings.Join(leaks, "\n"))
		}
	}
	if t.Failed() {
		t.Logf("the end of the daemon's log:\n%s", tail(b.Log(0), 60))
		if log, err := os.ReadFile(filepath.Join(b.State(), "kuasar/worker/log")); err == nil {
			t.Logf("the end of the worker's log:\n%s", tail(string(log), 30))
		}
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
}
