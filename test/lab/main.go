// lab runs a command in a virtual machine in which the things work that this
// machine may lack: /dev/kvm, /dev/vhost-vsock, cgroup v2, systemd.
//
//	go run ./test/lab [-memory MiB] [-cpus N] [-cgroup v1|v2] [-systemd] [-timeout D] -- COMMAND [ARGUMENT]...
//
// The machine is emulated, its processor's virtualization too, so it needs
// nothing of the host but QEMU; it is some 16 to 20 times slower. Its root file
// system is the host's with an overlay of memory: everything installed is there,
// and nothing it does stays. The command has this directory, this environment
// but for TMPDIR, and its output and exit status are the lab's.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/containerd-kuasar/containerd-kuasar/test/bed"
	"github.com/containerd-kuasar/containerd-kuasar/test/lab/job"
)

func main() {
	status, err := lab()
	if err != nil {
		fmt.Fprintln(os.Stderr, "lab:", err)
		status = 125
	}
	os.Exit(status)
}

func lab() (int, error) {
	memory := flag.Int("memory", 6144, "of the machine, MiB; only what it uses is taken")
	cpus := flag.Int("cpus", 2, "of the machine")
	cgroup := flag.String("cgroup", "v2", "version of cgroups: v1 or v2")
	systemd := flag.Bool("systemd", false, "run systemd as the machine's first process")
	timeout := flag.Duration("timeout", 20*time.Minute, "for all")
	flag.Parse()
	if flag.NArg() == 0 || *cgroup != "v1" && *cgroup != "v2" {
		flag.Usage()
		return 2, nil
	}
	if os.Geteuid() != 0 {
		return 0, errors.New("run as root: the machine gets this root file system")
	}
	if err := bed.Isolate(); err != nil { // whatever happens, nothing is left
		return 0, err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	ctx, cancel := context.WithTimeoutCause(ctx, *timeout, fmt.Errorf("it took longer than %v (-timeout)", *timeout))
	defer cancel()
	dir, err := os.Getwd()
	if err != nil {
		return 0, err
	}
	m := machine{memory: *memory, cpus: *cpus, job: job.Job{
		Args: flag.Args(), Env: environ(), Dir: dir, Cgroup: *cgroup, Systemd: *systemd,
	}}
	return m.run(ctx)
}

// environ is the job's.
func environ() []string {
	env := []string{"TMPDIR=" + job.Temporary, "KUASAR_LAB=1", "HOME=/root"}
	for _, e := range os.Environ() {
		name, _, _ := strings.Cut(e, "=")
		switch name {
		case "TMPDIR", "HOME":
		default:
			env = append(env, e)
		}
	}
	return env
}
