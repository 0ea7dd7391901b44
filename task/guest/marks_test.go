package guest

import "testing"

// Each phase begins when the one before ends.
func TestMarks(t *testing.T) {
	var m Marks
	m.Mark("kernel")
	m.Mark("init")
	r := m.End("serve")
	if len(r.Phases) != 3 {
		t.Fatalf("phases %v", r.Phases)
	}
	var at int64
	for i, name := range []string{"kernel", "init", "serve"} {
		p := r.Phases[i]
		if p.Name != name || p.Begin != at || p.End <= p.Begin {
			t.Errorf("phase %v begins at %d", p, at)
		}
		at = p.End
	}
	if r.Took != at {
		t.Errorf("the boot took %d and ended at %d", r.Took, at)
	}
}
