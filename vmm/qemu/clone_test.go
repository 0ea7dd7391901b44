package qemu

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd-kuasar/containerd-kuasar/internal/record"
	"github.com/containerd-kuasar/containerd-kuasar/sandbox"
	"github.com/containerd-kuasar/containerd-kuasar/vmm"
)

// TestClones has five machines of one template, of which two have waited in the
// pool. What should be a machine's own no two of them share.
func TestClones(t *testing.T) {
	n := newNode(t)
	var err error
	n.backend.Templates, err = vmm.OpenTemplates(n.ctx, filepath.Join(n.dir, "templates"), n.backend.Reaper)
	if err != nil {
		t.Fatal(err)
	}
	n.backend.Defaults.Templates, n.backend.Defaults.Debug = true, true
	first := n.newBox(t, "first")
	first.isClone(false)
	first.remove()
	first.must(n.backend.Templates.Settled(n.ctx))

	seen := map[string]string{}
	unique := func(b *box) *box {
		b.isClone(true)
		for what, value := range b.own() {
			name := what + " " + value
			if value == "" || seen[name] != "" {
				t.Errorf("%s of %s is %q, and that of %s", what, b.dir, value, seen[name])
			}
			seen[name] = b.dir
		}
		return b
	}
	one := unique(n.newBox(t, "pod"))
	other := unique(n.newBox(t, "other"))
	n.backend.Defaults.Pool = 2
	unique(n.newBox(t, "third")).remove() // from here on there is a pool
	one.must(n.backend.Templates.Filled(n.ctx))
	var pools []*box
	for _, id := range []string{"fourth", "fifth"} {
		ready := n.pooled(t)
		b := n.newBox(t, id)
		if pid := b.Sandbox.(sandbox.Processer).Pid(); !slices.Contains(ready, pid) {
			t.Errorf("the machine of %s is process %d, those in the pool were %d", id, pid, ready)
		}
		pools = append(pools, unique(b))
	}
	// The template was saved some seconds ago.
	for _, b := range append(pools, other, one) {
		before := time.Now().Unix()
		var now int64
		_, err := fmt.Sscan(b.run("clock", "date +%s"), &now)
		b.must(err)
		if now < before-1 || now > time.Now().Unix()+1 {
			t.Errorf("the clock is ahead by %d s", now-before)
		}
	}
	podIsSet(one)
	podHasNetwork(one)
	containersAreSet(one)
	rootIsDisk(one)
}

// pooled are the processes of the machines that wait.
func (n *node) pooled(t *testing.T) (pids []uint32) {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(n.dir, "pool", "*", "process.json"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range found {
		var p vmm.Process
		if _, err := record.Read(path, &p); err != nil {
			t.Fatal(err)
		}
		pids = append(pids, uint32(p.Pid))
	}
	return pids
}

// isClone says how the machine has started.
func (b *box) isClone(want bool) {
	b.Helper()
	args, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", b.Sandbox.(sandbox.Processer).Pid()))
	b.must(err)
	if got := strings.Contains(string(args), "\x00-incoming\x00"); got != want {
		b.Fatalf("clone: %t, want %t", got, want)
	}
}

// own is what no other machine has, by name.
func (b *box) own() map[string]string {
	b.Helper()
	own := map[string]string{"first random number": b.console("cat", "/proc/sys/kernel/random/uuid")}
	c := b.create("own", `exec >/out/text
		echo boot id: $(cat /proc/sys/kernel/random/boot_id)
		echo uuid: $(cat /proc/sys/kernel/random/uuid)
		echo random bytes: $(head -c 16 /dev/urandom | od -An -tx1)
		echo addresses that are random: $(grep -e stack -e vdso /proc/self/maps)
		echo hostname: $(hostname)
		echo MAC: $(cat /sys/class/net/eth0/address)
		echo link-local address: $(grep ^fe80 /proc/net/if_inet6)
	`).start()
	if got := c.wait(); got != 0 {
		b.Errorf("exit status %d", got)
	}
	for _, line := range strings.Split(c.read("text"), "\n") {
		what, value, _ := strings.Cut(line, ": ")
		own[what] = value
	}
	c.remove()
	saved, err := b.Save()
	b.must(err)
	var state struct{ CID uint32 }
	b.must(json.Unmarshal(saved, &state))
	if state.CID != 0 { // of the kernel's vsock; otherwise each has a daemon of its own
		own["CID"] = fmt.Sprint(state.CID)
	}
	return own
}

// console runs a command of the guest's debug console. It takes no container's
// start, in which the guest's kernel may gather what makes it another.
func (b *box) console(args ...string) string {
	b.Helper()
	saved, err := b.Save()
	b.must(err)
	r, err := vmm.ReadRecord(b.dir, saved)
	b.must(err)
	var out strings.Builder
	b.must(r.Run(b.ctx, args, &out))
	return out.String()
}
