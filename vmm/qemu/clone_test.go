package qemu

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd-kuasar/containerd-kuasar/sandbox"
	"github.com/containerd-kuasar/containerd-kuasar/vmm"
)

// TestClones has two machines of one template. What should be a machine's own
// they do not share: neither with each other, nor with the template.
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

	one := n.newBox(t, "pod")
	one.isClone(true)
	its := one.own()
	other := n.newBox(t, "other")
	other.isClone(true)
	for what, value := range other.own() {
		if value == "" || value == its[what] {
			t.Errorf("%s of the clones: %q and %q", what, its[what], value)
		}
	}
	// The template was saved some seconds ago.
	for _, b := range []*box{other, one} {
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
