package cgroup

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// beat is how often Warm makes the kernel's wait unnecessary. After a move the
// next ones are quick for about two grace periods, 15 ms where it was measured.
const beat = 8 * time.Millisecond

// Warm makes moves of processes between cgroups quick from soon on and for d.
// It returns at once, and several calls cost no more than one.
//
// A move excludes all forks and exits on the machine. So that these need no
// lock, it first waits for an RCU grace period: 5 to 15 ms on an idle machine,
// which is a third of a container's start and more than half of an exec, unless
// another move was made just before. So who knows that a process is about to be
// moved calls this beforehand: for d it moves the calling process to where it
// is. That changes nothing, and costs 40 us each 8 ms.
//
// (cgroup_threadgroup_rwsem of kernel/cgroup/cgroup.c. Mounting a cgroup file
// system with favordynmods has the same effect for good.)
func Warm(d time.Duration) { warmer.until(time.Now().Add(d)) }

var warmer warmth

type warmth struct {
	mu      sync.Mutex
	end     time.Time
	running bool
}

func (w *warmth) until(t time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if t.After(w.end) {
		w.end = t
	}
	if !w.running {
		w.running = true
		go w.run()
	}
}

func (w *warmth) run() {
	t := time.NewTicker(beat)
	defer t.Stop()
	for w.again(stay("/proc/self/cgroup", "/sys/fs/cgroup")) {
		<-t.C
	}
}

// again says whether to go on; if not, the next until starts anew.
func (w *warmth) again(ok bool) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.running = ok && time.Now().Before(w.end)
	return w.running
}

// stay moves this process to the cgroup that it is in, in one hierarchy. It is
// false if that cannot be done.
func stay(self, root string) bool {
	b, err := os.ReadFile(self)
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(b)) {
		// hierarchy:controllers:path, see cgroups(7)
		f := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(f) != 3 {
			continue
		}
		dir := filepath.Join(root, strings.TrimPrefix(f[1], "name="), f[2])
		if put(filepath.Join(dir, "cgroup.procs"), "0") == nil {
			return true
		}
	}
	return false
}

func put(path, data string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(data)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}
