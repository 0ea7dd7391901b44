package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/containerd-kuasar/containerd-kuasar/test/bed"
)

// outputSize is what a container writes to its stdout, in bytes.
const outputSize = 64 << 20

// benchOutput: a container writes lines of 1 KiB as fast as it can, into its
// log. A sample is the time from start to exit; the log must be complete.
func benchOutput(ctx context.Context, b *bench) error {
	script := fmt.Sprintf("yes %s | head -c %d", bytes.Repeat([]byte("x"), 1023), outputSize)
	n := b.n
	b.n = max(3, n/6)
	defer func() { b.n = n }()
	samples, err := b.inTurn(func(handler string) (time.Duration, error) {
		events, err := b.Runtime.GetContainerEvents(ctx, &runtime.GetEventsRequest{})
		if err != nil {
			return 0, err
		}
		p, _, err := b.start(ctx, shape{handler: handler, command: []string{"sh", "-c", script}})
		if err != nil {
			return 0, err
		}
		begin := time.Now()
		for {
			event, err := events.Recv()
			if err != nil {
				return 0, err
			}
			if event.ContainerId == p.container && event.ContainerEventType == runtime.ContainerEventType_CONTAINER_STOPPED_EVENT {
				break
			}
		}
		took := time.Since(begin)
		if err := checkLog(filepath.Join(b.Dir, p.config.Metadata.Name+".log")); err != nil {
			return 0, err
		}
		return took, b.remove(ctx, p)
	})
	if err != nil {
		return err
	}
	rates := map[string][]float64{}
	for handler, took := range samples {
		for _, t := range took {
			rates[handler] = append(rates[handler], outputSize/1e6/t.Seconds())
		}
	}
	b.report.rates(b.title("stdout to log"), "MB/s", rates[b.ours], rates[bed.Stock], 1)
	return nil
}

// checkLog counts the lines of a log and removes it.
func checkLog(path string) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if got, want := bytes.Count(data, []byte("\n")), outputSize/1024; got != want {
		return fmt.Errorf("log has %d lines, want %d", got, want)
	}
	return os.Remove(path)
}
