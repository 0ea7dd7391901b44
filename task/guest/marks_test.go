package guest

import (
	"os"
	"testing"
)

// What was marked before PID 1 executed itself again is not lost.
func TestMarks(t *testing.T) {
	t.Setenv(marksVar, "")
	first := Resume()
	first.Mark("kernel")
	first.Mark("init")
	first.Pass()
	second := Resume()
	if v, found := os.LookupEnv(marksVar); found {
		t.Errorf("children of the agent get %q", v)
	}
	second.Mark("seal")
	r := second.End("serve")
	if len(r.Phases) != 4 {
		t.Fatalf("phases %v", r.Phases)
	}
	var at int64
	for i, name := range []string{"kernel", "init", "seal", "serve"} {
		p := r.Phases[i]
		if p.Name != name || p.Begin != at || p.End < p.Begin {
			t.Errorf("phase %v begins at %d", p, at)
		}
		at = p.End
	}
	if r.Took != at || at == 0 {
		t.Errorf("the boot took %d and ended at %d", r.Took, at)
	}
}
