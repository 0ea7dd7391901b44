package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd-kuasar/containerd-kuasar/test/bed"
)

// managers are the programs that manage pods rather than being part of them.
var managers = []string{daemonName, "kuasar-task", "containerd-shim-runc-v2", "pause"}

// daemonName is the manager that both handlers have in common.
const daemonName = "containerd-kuasar"

// steps are numbers of pods at which memory is read.
var steps = []int{1, 10, 50}

// benchMemory: what the management of a pod costs, as the growth of the
// proportional set size of daemon, worker, shims and pause processes from one
// number of pods to the next. Each handler gets a daemon of its own, as the
// daemon's memory does not shrink. Nothing is said of the first pod: before it
// the daemon still has what pulling images took.
func benchMemory(ctx context.Context, b *bench) error {
	growth := map[string][]usage{}
	for _, handler := range b.handlers() {
		err := b.fresh(ctx, func() error {
			var err error
			growth[handler], err = b.grow(ctx, handler)
			return err
		})
		if err != nil {
			return fmt.Errorf("%s: %w", handler, err)
		}
	}
	for i := 1; i < len(steps); i++ {
		ours, stock := growth[b.ours][i], growth[bed.Stock][i]
		name := fmt.Sprintf("management memory a pod, from %d to %d pods", steps[i-1], steps[i])
		b.report.compare(name, "KB", []float64{ours.daemon + ours.rest}, []float64{stock.daemon + stock.rest}, 0.01)
		b.report.compare("- of which beside the daemon", "KB", []float64{ours.rest}, []float64{stock.rest}, 0.01)
	}
	return nil
}

// usage is memory in KB.
type usage struct{ daemon, rest float64 }

// grow starts pods and returns, for each step, the growth a pod since the one
// before.
func (b *bench) grow(ctx context.Context, handler string) ([]usage, error) {
	last, err := managementMemory()
	if err != nil {
		return nil, err
	}
	var growth []usage
	var pods []*pod
	for _, n := range steps {
		added := float64(n - len(pods))
		for len(pods) < n {
			p, _, err := b.start(ctx, shape{handler: handler})
			if err != nil {
				return nil, err
			}
			pods = append(pods, p)
		}
		now, err := managementMemory()
		if err != nil {
			return nil, err
		}
		growth = append(growth, usage{(now.daemon - last.daemon) / added, (now.rest - last.rest) / added})
		last = now
	}
	return growth, b.removeAll(ctx, pods)
}

// managementMemory sums the PSS of all managers.
func managementMemory() (usage, error) {
	processes, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return usage{}, err
	}
	var sum usage
	for _, p := range processes {
		args, err := os.ReadFile(filepath.Join(p, "cmdline"))
		if err != nil {
			continue // it has ended
		}
		path, _, _ := strings.Cut(string(args), "\x00")
		name := filepath.Base(path)
		if !slices.Contains(managers, name) {
			continue
		}
		n, err := pss(p)
		if err != nil {
			return usage{}, err
		}
		if name == daemonName {
			sum.daemon += float64(n)
		} else {
			sum.rest += float64(n)
		}
	}
	return sum, nil
}

// pss reads the proportional set size of a process in KB.
func pss(process string) (int, error) {
	f, err := os.Open(filepath.Join(process, "smaps_rollup"))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if value, found := strings.CutPrefix(s.Text(), "Pss:"); found {
			return strconv.Atoi(strings.Fields(value)[0])
		}
	}
	return 0, fmt.Errorf("read %s: no Pss", f.Name())
}
