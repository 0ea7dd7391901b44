package vmm

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/docker/go-metrics"
)

// Shapes that differ in no label are counted together.
func TestPoolReadyOfLikeShapes(t *testing.T) {
	labels := labelsOf(Config{CPUs: 77, Memory: 77 << 20})
	one, two := &kind{labels: labels}, &kind{labels: labels}
	p := &pool{kinds: map[string]*kind{"one": one, "two": two}, changed: make(chan struct{})}
	one.ready = []*spare{nil, nil}
	p.change(one)
	two.ready = []*spare{nil}
	p.change(two)
	served := httptest.NewRecorder()
	metrics.Handler().ServeHTTP(served, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/", nil))
	if want := `kuasar_vmm_pool_ready{memory="77",vcpus="77"} 3`; !strings.Contains(served.Body.String(), want) {
		t.Errorf("%s is not in\n%s", want, served.Body)
	}
}
