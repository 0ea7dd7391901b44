// Package failpoint kills the process at a named point, so that tests can
// prove that a crash there loses and leaks nothing. A point stands right
// before or after an outside effect. It costs one nil check when off.
package failpoint

import (
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Env holds "name" or "name:n": die at the n-th hit of that point (first if
// no n is given). It is read once, at process start.
const Env = "KUASAR_FAILPOINT"

var (
	target, nth = parse(os.Getenv(Env))
	points      = map[string]*Point{}
)

// Point is one place to die at. Make it in a package variable.
type Point struct {
	left *atomic.Int64 // nil unless it is the target
}

// New names a point, as "package/operation/effect". A name is used once.
func New(name string) *Point {
	if points[name] != nil {
		panic("failpoint " + name + " is declared twice")
	}
	p := &Point{}
	if name == target {
		p.left = &atomic.Int64{}
		p.left.Store(nth)
	}
	points[name] = p
	return p
}

// Names lists the points of this binary, sorted.
func Names() []string { return slices.Sorted(maps.Keys(points)) }

// Hit kills the process with SIGKILL if this is the target's n-th hit.
func (p *Point) Hit() {
	if p.left == nil || p.left.Add(-1) != 0 {
		return
	}
	_ = unix.Kill(os.Getpid(), unix.SIGKILL)
	select {} // the signal is on its way: go no further
}

func parse(s string) (string, int64) {
	name, count, found := strings.Cut(s, ":")
	if !found {
		return name, 1
	}
	n, err := strconv.ParseInt(count, 10, 64)
	if err != nil || n < 1 {
		n = 1
	}
	return name, n
}
