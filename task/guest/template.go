package guest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/containerd-kuasar/containerd-kuasar/task/api"
)

// Template says whether this machine is one that is going to be saved.
func Template() (bool, error) {
	b, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return false, err
	}
	return slices.Contains(strings.Fields(string(b)), api.TemplateParam), nil
}

// GreetAsClone says that the machine can be saved, and in each of its clones
// hello to the host, as soon as there is a vsock device.
//
// What happens until then has happened in all of the clones. So there is
// nothing here that should differ between them, such as the boot's id, which the
// kernel makes up when it is read first.
func GreetAsClone(m *Modules) error {
	// What every pod needs a clone need not load.
	if err := m.Load("virtiofs", "virtio_net", "overlay"); err != nil {
		return err
	}
	debug.FreeOSMemory()
	if err := blank(); err != nil {
		return err
	}
	said := false
	return await(context.Background(), func() (bool, error) {
		if !said {
			said = true // device events are listened to by now
			if _, err := fmt.Printf("\n%s\n", api.TemplateReady); err != nil {
				return false, fmt.Errorf("say that the machine can be saved: %w", err)
			}
		}
		err := Greet()
		if errors.Is(err, unix.ENODEV) {
			return false, nil // not yet
		}
		return err == nil, err
	})
}

const (
	// maxBlank bounds the time that blank takes, in bytes. What the boot has
	// left is less.
	maxBlank = 512 << 20
	// leaveFree is what the kernel keeps while memory is blanked, in bytes.
	leaveFree = 24 << 20
)

// blank fills free memory with zeros, which the kernel does to what it gives to
// processes: what the boot used, the initramfs above all, need not be saved and
// copied to each clone then.
func blank() error {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return fmt.Errorf("read how much memory is free: %w", err)
	}
	free := min(int64(info.Freeram)*int64(info.Unit)-leaveFree, maxBlank)
	if free <= 0 {
		return nil
	}
	b, err := unix.Mmap(-1, 0, int(free), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return fmt.Errorf("blank %d bytes of free memory: %w", free, err)
	}
	for i := 0; i < len(b); i += os.Getpagesize() {
		b[i] = 0 // even this makes the kernel give it
	}
	if err := unix.Munmap(b); err != nil {
		return fmt.Errorf("give blank memory back: %w", err)
	}
	return nil
}
