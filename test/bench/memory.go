package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/containerd-kuasar/containerd-kuasar/test/bed"
)

// managers are the programs that manage pods rather than being part of them.
var managers = []string{"containerd-kuasar", "kuasar-task", "containerd-shim-runc-v2", "pause"}

// benchMemory: what the management of a pod costs, as the growth of the
// proportional set size of daemon, worker, shims and pause processes. Each
// handler gets a daemon of its own, as the daemon's memory does not shrink.
func benchMemory(ctx context.Context, b *bench) error {
	steps := []int{1, 10, 50}
	growth := map[string]map[int]float64{}
	for _, handler := range handlers {
		err := b.fresh(ctx, func() error {
			var err error
			growth[handler], err = b.grow(ctx, handler, steps)
			return err
		})
		if err != nil {
			return fmt.Errorf("%s: %w", handler, err)
		}
	}
	for _, n := range steps {
		b.report.compare(fmt.Sprintf("management memory a pod, %d pods", n), "KB",
			[]float64{growth[bed.Runc][n]}, []float64{growth[bed.Stock][n]}, 0.01)
	}
	return nil
}

// grow starts pods and returns, for each number of them, the growth a pod in KB.
func (b *bench) grow(ctx context.Context, handler string, steps []int) (map[int]float64, error) {
	before, err := managementMemory()
	if err != nil {
		return nil, err
	}
	growth := map[int]float64{}
	var pods []*pod
	for _, n := range steps {
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
		growth[n] = float64(now-before) / float64(n)
	}
	return growth, b.removeAll(ctx, pods)
}

// managementMemory sums the PSS of all managers in KB.
func managementMemory() (int, error) {
	processes, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return 0, err
	}
	sum := 0
	for _, p := range processes {
		args, err := os.ReadFile(filepath.Join(p, "cmdline"))
		if err != nil {
			continue // it has ended
		}
		name, _, _ := strings.Cut(string(args), "\x00")
		for _, m := range managers {
			if filepath.Base(name) == m {
				n, err := pss(p)
				if err != nil {
					return 0, err
				}
				sum += n
			}
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
