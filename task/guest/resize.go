package guest

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/containerd/errdefs"

	"github.com/containerd-kuasar/containerd-kuasar/task/api"
)

const sys = "/sys"

// Resize implements api.GuestService.
func (g *Guest) Resize(ctx context.Context, r *api.ResizeRequest) (*api.ResizeResponse, error) {
	if err := g.take(ctx); err != nil {
		return nil, err
	}
	defer g.pass()
	if r.Cpus < 1 {
		return nil, invalid("use %d processors", r.Cpus)
	}
	if r.Memory {
		if err := expectMemory(sys); err != nil {
			return nil, fmt.Errorf("prepare for more memory: %w", err)
		}
	}
	err := await(ctx, func() (bool, error) {
		n, err := use(sys, int(r.Cpus))
		return n == int(r.Cpus), err
	})
	if err != nil {
		return nil, fmt.Errorf("use %d processors: %w", r.Cpus, err)
	}
	return &api.ResizeResponse{}, nil
}

// expectMemory loads the driver of memory devices, and has the kernel use what
// they bring at once: as movable, so that it can be given back, as far as the
// kernel has enough other memory for what it needs itself.
func expectMemory(sys string) error {
	for _, s := range []struct{ path, value string }{
		{"module/memory_hotplug/parameters/online_policy", "auto-movable"}, // Linux 5.15
		{"devices/system/memory/auto_online_blocks", "online"},
	} {
		err := put(filepath.Join(sys, s.path), s.value)
		if errors.Is(err, fs.ErrNotExist) && s.value != "online" {
			continue // the kernel decides by itself
		}
		if errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("the guest's kernel cannot add memory (CONFIG_MEMORY_HOTPLUG): %w: %w", err, errdefs.ErrNotImplemented)
		}
		if err != nil {
			return err
		}
	}
	return driver(sys, "virtio_mem")
}

// reportOrder is the least that is reported, 2^7 pages. Linux reports as long as
// 32 such pieces are free (mm/page_reporting.c): with its own choice, of 2 MiB, a
// small guest would never do that.
const reportOrder = "7"

// reportFree has the kernel tell the balloon device what memory is free.
func reportFree(sys string) error {
	if err := driver(sys, "virtio_balloon"); err != nil {
		return err
	}
	// Not on the kernel's command line: Linux 6.1 forgets it when the driver comes.
	return put(filepath.Join(sys, "module/page_reporting/parameters/page_reporting_order"), reportOrder)
}

// driver loads one from the host: few guests ever need it.
func driver(sys, name string) error {
	library, err := NewLibrary(api.Modules)
	if err != nil {
		return err
	}
	if err := library.Load(name); err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(sys, "bus/virtio/drivers", name)); err != nil {
		return fmt.Errorf("the guest has no driver %s: build it, with its modules, again (make guest): %w: %w", name, err, errdefs.ErrNotImplemented)
	}
	return nil
}

// put writes a file of the kernel's. One that is missing must not be made: the
// error would be another.
func put(path, value string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}

// use has the kernel use so many processors, those with the lowest numbers, and
// counts them.
func use(sys string, want int) (n int, err error) {
	dirs, err := filepath.Glob(filepath.Join(sys, "devices/system/cpu/cpu[0-9]*"))
	if err != nil {
		return 0, err
	}
	slices.SortFunc(dirs, func(a, b string) int { // cpu10 after cpu9
		return cmp.Or(cmp.Compare(len(a), len(b)), cmp.Compare(a, b))
	})
	for _, dir := range dirs {
		to := "1"
		if n == want {
			to = "0"
		}
		path := filepath.Join(dir, "online")
		b, err := os.ReadFile(path)
		if err == nil && !bytes.HasPrefix(b, []byte(to)) {
			err = put(path, to)
		}
		switch {
		case errors.Is(err, fs.ErrNotExist):
			if filepath.Base(dir) == "cpu0" { // which cannot be put offline
				n++
			}
		case err != nil:
			return n, err
		case to == "1":
			n++
		}
	}
	return n, nil
}
