package bed

import (
	"context"
	"testing"
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestStartKillStart(t *testing.T) {
	b := Test(t, Options{})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	first := b.Pid()
	if err := b.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := b.Start(ctx); err != nil {
		t.Fatal(err)
	}
	if b.Pid() == first {
		t.Errorf("pid %d before and after", first)
	}
	status, err := b.Runtime.Status(ctx, &runtime.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, condition := range status.Status.Conditions {
		if (condition.Type == runtime.RuntimeReady || condition.Type == runtime.NetworkReady) && !condition.Status {
			t.Errorf("%s: %s %s", condition.Type, condition.Reason, condition.Message)
		}
	}
}
