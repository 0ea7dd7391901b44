package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
)

// TestParallel lives many lives at once.
func TestParallel(t *testing.T) {
	n := newNode(t)
	const lives = 20
	var wg sync.WaitGroup
	for i := range lives {
		b := n.newBox("sh", "-c", fmt.Sprintf("echo %d; read x; exit %d", i, i))
		path, w := b.stdin("stdin")
		b.req.Stdin = path
		data, err := json.Marshal(b.spec)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(b.bundle, "config.json"), data, 0o600); err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			ctx, cancel := n.ctx()
			defer cancel()
			if err := b.parallel(ctx, w, uint32(i)); err != nil {
				t.Errorf("%s: %v", b.id, err)
			}
		})
		defer func() {
			if got := b.out.String(); got != fmt.Sprintln(i) {
				t.Errorf("%s: output %q", b.id, got)
			}
			if left := b.leftovers(); left != "" {
				t.Errorf("left: %s", left)
			}
		}()
	}
	wg.Wait()
	if keys := n.keeper.Keys(); len(keys) != 0 {
		t.Errorf("held: %v", keys)
	}
}

// parallel is a life without a testing.TB, for a goroutine.
func (b *box) parallel(ctx context.Context, stdin *os.File, want uint32) error {
	if _, err := b.client.Create(ctx, b.req); err != nil {
		return err
	}
	if _, err := b.client.Start(ctx, &taskapi.StartRequest{ID: b.id}); err != nil {
		return err
	}
	for range 3 {
		if _, err := b.client.Exec(ctx, &taskapi.ExecProcessRequest{ID: b.id, ExecID: "e", Spec: b.processSpec("sh", "-c", "exit 99")}); err != nil {
			return err
		}
		if _, err := b.client.Start(ctx, &taskapi.StartRequest{ID: b.id, ExecID: "e"}); err != nil {
			return err
		}
		if r, err := b.client.Wait(ctx, &taskapi.WaitRequest{ID: b.id, ExecID: "e"}); err != nil || r.ExitStatus != 99 {
			return fmt.Errorf("exec: %v, %w", r, err)
		}
		if _, err := b.client.Delete(ctx, &taskapi.DeleteRequest{ID: b.id, ExecID: "e"}); err != nil {
			return err
		}
	}
	if _, err := stdin.WriteString("\n"); err != nil {
		return err
	}
	if r, err := b.client.Wait(ctx, &taskapi.WaitRequest{ID: b.id}); err != nil || r.ExitStatus != want {
		return fmt.Errorf("exit: %v, %w", r, err)
	}
	_, err := b.client.Delete(ctx, &taskapi.DeleteRequest{ID: b.id})
	return err
}
