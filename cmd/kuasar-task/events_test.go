package main

import (
	"context"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/pkg/namespaces"

	"github.com/containerd-kuasar/containerd-kuasar/task/api"
)

// events collects a subscription's.
type events struct {
	mu   sync.Mutex
	cond sync.Cond
	list []*api.Event
	err  error
}

func (n *node) subscribe() *events {
	n.Helper()
	stream, err := n.client.Events(namespaces.WithNamespace(context.Background(), "k8s.io"), &api.EventsRequest{})
	if err != nil {
		n.Fatal(err)
	}
	if e, err := stream.Recv(); err != nil || e.Event != nil {
		n.Fatalf("first event is %v, %v", e, err)
	}
	v := &events{}
	v.cond.L = &v.mu
	go func() {
		for {
			e, err := stream.Recv()
			v.mu.Lock()
			if err == nil {
				v.list = append(v.list, e)
			} else {
				v.err = err
			}
			v.cond.Broadcast()
			v.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	return v
}

// await returns the first event that is wanted.
func (b *box) await(wanted func(*api.Event) bool) *api.Event {
	b.Helper()
	v := b.events
	timer := time.AfterFunc(deadline, func() {
		v.mu.Lock()
		defer v.mu.Unlock()
		if v.err == nil {
			v.err = context.DeadlineExceeded
		}
		v.cond.Broadcast()
	})
	defer timer.Stop()
	v.mu.Lock()
	defer v.mu.Unlock()
	for i := 0; ; i++ {
		for i == len(v.list) {
			if v.err != nil {
				b.Fatalf("no such event among %v: %v", v.list, v.err)
			}
			v.cond.Wait()
		}
		if e := v.list[i]; e.ContainerId == b.id && wanted(e) {
			return e
		}
	}
}

func (b *box) awaitExit(exec string) *api.ProcessExit {
	b.Helper()
	return b.await(func(e *api.Event) bool { return e.GetExit() != nil && e.GetExit().ExecId == exec }).GetExit()
}
