package bed

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// messageSize is kubelet's limit of a CRI message, in bytes.
const messageSize = 16 << 20

// dial makes a connection that finds the daemon again quickly when it comes
// back. It does not wait for it.
func dial(socket string) (*grpc.ClientConn, error) {
	return grpc.NewClient("unix://"+socket,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(messageSize), grpc.WaitForReady(true)),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff: backoff.Config{BaseDelay: 10 * time.Millisecond, Multiplier: 1, MaxDelay: 10 * time.Millisecond},
			// Without it the delay would be all that a connection may take.
			MinConnectTimeout: 20 * time.Second,
		}))
}

// Pull pulls an image.
func (b *Bed) Pull(ctx context.Context, name string) error {
	_, err := b.Images.PullImage(ctx, &runtime.PullImageRequest{Image: &runtime.ImageSpec{Image: name}})
	if err != nil {
		return fmt.Errorf("pull %s: %w", name, err)
	}
	return nil
}

// removeAll stops and removes every pod.
func (b *Bed) removeAll(ctx context.Context) error {
	list, err := b.Runtime.ListPodSandbox(ctx, &runtime.ListPodSandboxRequest{})
	if err != nil {
		return fmt.Errorf("list pods: %w", err)
	}
	var errs []error
	for _, pod := range list.Items {
		if _, err := b.Runtime.StopPodSandbox(ctx, &runtime.StopPodSandboxRequest{PodSandboxId: pod.Id}); err != nil {
			errs = append(errs, fmt.Errorf("stop pod %s: %w", pod.Id, err))
			continue
		}
		if _, err := b.Runtime.RemovePodSandbox(ctx, &runtime.RemovePodSandboxRequest{PodSandboxId: pod.Id}); err != nil {
			errs = append(errs, fmt.Errorf("remove pod %s: %w", pod.Id, err))
		}
	}
	return errors.Join(errs...)
}
