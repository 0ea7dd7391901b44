package server

import (
	"testing"

	"github.com/containerd/errdefs"
)

var statuses = []status{created, running, pausing, paused, stopped, gone}

func TestEveryTransition(t *testing.T) {
	want := map[[2]status]bool{
		{created, running}: true, {created, stopped}: true, {created, gone}: true,
		{running, pausing}: true, {running, stopped}: true,
		{pausing, paused}: true, {pausing, running}: true, {pausing, stopped}: true,
		{paused, running}: true, {paused, stopped}: true,
		{stopped, gone}: true,
	}
	for _, from := range statuses {
		for _, to := range statuses {
			if got := from.canBecome(to); got != want[[2]status{from, to}] {
				t.Errorf("%s to %s: %v", from, to, got)
			}
			c := newContainer("", key{"ns", "c"}, nil, saved{Status: from})
			if err := c.init.become(to); (err == nil) != want[[2]status{from, to}] {
				t.Errorf("%s becomes %s: %v", from, to, err)
			}
		}
	}
}

// TestEveryOperation has one letter for each status: allowed, FailedPrecondition
// or NotFound.
func TestEveryOperation(t *testing.T) {
	for op, want := range map[operation]string{
		opStart:      "apppp" + "n",
		opExec:       "aappp" + "n",
		opKill:       "aaaan" + "n",
		opPause:      "pappp" + "n",
		opResume:     "pppap" + "n",
		opUpdate:     "aaaap" + "n",
		opCheckpoint: "papap" + "n",
		opDelete:     "apppa" + "n",
	} {
		for i, s := range statuses {
			err := s.check(op)
			got := byte('?')
			switch {
			case err == nil:
				got = 'a'
			case errdefs.IsFailedPrecondition(err):
				got = 'p'
			case errdefs.IsNotFound(err):
				got = 'n'
			}
			if got != want[i] {
				t.Errorf("%s a %s process: %v", op, s, err)
			}
		}
	}
}

func TestValid(t *testing.T) {
	for id, want := range map[string]bool{
		"a": true, "0123456789abcdef": true, "a-b_c.d": true, "k8s.io": true,
		"": false, ".": false, "..": false, "-a": false, "a/b": false, "a b": false, "ä": false, "a\x00": false,
		string(make([]byte, 77)): false,
	} {
		if valid(id) != want {
			t.Errorf("%q: %v", id, !want)
		}
	}
}
