package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
)

// BenchmarkStart measures a container's way to its program and away, as
// BenchmarkRunc does with the host's runc.
func BenchmarkStart(b *testing.B) {
	n := newNode(b)
	x := n.newBox("true")
	x.req.Stdout = ""
	b.ResetTimer()
	for b.Loop() {
		x.create()
		x.start()
		x.wait("")
		x.delete("")
	}
}

// BenchmarkExec measures a process in a running container.
func BenchmarkExec(b *testing.B) {
	n := newNode(b)
	x := n.newBox("sleep", "100000")
	x.req.Stdout = ""
	x.run()
	b.ResetTimer()
	for b.Loop() {
		x.exec("e", func(r *taskapi.ExecProcessRequest) { os.Remove(r.Stdout); r.Stdout = "" }, "true")
		x.startExec("e")
		x.wait("e")
		x.delete("e")
	}
}

// BenchmarkRunc runs the same container with runc.
func BenchmarkRunc(b *testing.B) {
	n := newNode(b)
	runc, err := exec.LookPath("runc")
	if err != nil {
		b.Skip("missing: runc")
	}
	x := n.newBox("true")
	data, err := json.Marshal(x.spec)
	if err != nil {
		b.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(x.bundle, "config.json"), data, 0o600); err != nil {
		b.Fatal(err)
	}
	b.ResetTimer()
	for b.Loop() {
		if out, err := exec.Command(runc, "--root", filepath.Join(n.dir, "runc"), "run", "--bundle", x.bundle, x.id).CombinedOutput(); err != nil {
			b.Fatalf("%v: %s", err, out)
		}
	}
}
