package guest

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unsafe"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/containerd-kuasar/containerd-kuasar/task/api"
	"github.com/containerd-kuasar/containerd-kuasar/task/phase"
)

// Setup implements api.GuestService.
func (g *Guest) Setup(ctx context.Context, r *api.SetupRequest) (*api.SetupResponse, error) {
	if err := g.take(ctx); err != nil {
		return nil, err
	}
	defer g.pass()
	if err := g.setup(ctx, r); err != nil {
		return nil, fmt.Errorf("set the guest up: %w", err)
	}
	return &api.SetupResponse{Kernel: release()}, nil
}

func (g *Guest) setup(ctx context.Context, r *api.SetupRequest) error {
	if err := seed(g.random, r.Entropy); err != nil {
		return err
	}
	if r.Time != nil {
		if err := setClock(r.Time); err != nil {
			return err
		}
	}
	// Before what may fail or hang: then it is needed.
	if err := g.openConsole(r.ConsoleKey); err != nil {
		return err
	}
	if err := setNames(r.Hostname, r.Domainname); err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(r.Sysctls)) {
		if err := setSysctl(procSys, name, r.Sysctls[name]); err != nil {
			return err
		}
	}
	if r.ShmSize > 0 {
		if err := unix.Mount("", "/dev/shm", "", unix.MS_REMOUNT|safe, fmt.Sprintf("mode=1777,size=%d", r.ShmSize)); err != nil {
			return fmt.Errorf("set the size of /dev/shm to %d: %w", r.ShmSize, err)
		}
	}
	for _, s := range r.Shares {
		if err := g.share(ctx, s); err != nil {
			return err
		}
	}
	if r.FreePageReporting {
		if err := reportFree(sys); err != nil {
			return fmt.Errorf("report free memory: %w", err)
		}
	}
	return serveModules(procSys)
}

// serveModules has the kernel ask the agent's program for modules that it lacks,
// if there are any and it can load them.
func serveModules(sys string) error {
	for _, path := range []string{filepath.Join(api.Modules, "order"), filepath.Join(sys, "kernel/modprobe")} {
		if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
			return nil
		}
	}
	return setSysctl(sys, "kernel.modprobe", "/proc/1/exe")
}

// share mounts a directory of the host.
func (g *Guest) share(ctx context.Context, s *api.Share) error {
	defer phase.Begin(ctx, "share")()
	if done, err := g.isMounted(s.Target, "share "+s.Tag); done || err != nil {
		return err
	}
	if err := g.modules.Load("virtiofs"); err != nil {
		return err
	}
	if err := os.MkdirAll(s.Target, 0o755); err != nil {
		return err
	}
	err := await(ctx, func() (bool, error) {
		err := unix.Mount(s.Tag, s.Target, "virtiofs", 0, "")
		if err == unix.EINVAL { // no such tag yet
			return false, nil
		}
		return err == nil, err
	})
	if err != nil {
		return fmt.Errorf("mount share %s on %s: %w", s.Tag, s.Target, err)
	}
	g.mounted[s.Target] = "share " + s.Tag
	return nil
}

// isMounted says whether what is to be mounted is there already. Another thing
// there is an error.
func (g *Guest) isMounted(target, what string) (bool, error) {
	if !filepath.IsAbs(target) {
		return false, invalid("%s: target %q is not absolute", what, target)
	}
	switch is := g.mounted[target]; is {
	case "":
		return false, nil
	case what:
		return true, nil
	default:
		return false, fmt.Errorf("%s: there is %s on %s: %w", what, is, target, errdefs.ErrAlreadyExists)
	}
}

func setNames(host, domain string) error {
	if host != "" {
		if err := unix.Sethostname([]byte(host)); err != nil {
			return fmt.Errorf("set hostname %q: %w", host, err)
		}
	}
	if domain != "" {
		if err := unix.Setdomainname([]byte(domain)); err != nil {
			return fmt.Errorf("set domain name %q: %w", domain, err)
		}
	}
	return nil
}

const procSys = "/proc/sys"

// setSysctl writes one below dir. A name has dots or slashes between its parts,
// whichever comes first: a part may contain the other one (an interface
// "eth0.5").
func setSysctl(dir, name, value string) error {
	path := name
	if i := strings.IndexAny(name, "./"); i >= 0 && name[i] == '.' {
		path = strings.NewReplacer(".", "/", "/", ".").Replace(name)
	}
	if !filepath.IsLocal(path) {
		return invalid("sysctl %q is no name", name)
	}
	if err := os.WriteFile(filepath.Join(dir, path), []byte(value), 0o644); err != nil {
		return fmt.Errorf("set sysctl %s to %q: %w", name, value, err)
	}
	return nil
}

// maxEntropy is more than the kernel mixes in at once: its pool has 32 bytes.
const maxEntropy = 512

// seed gives the kernel random bytes that it can trust: a machine that is like
// others has few of its own. control is the control of its random numbers.
func seed(control func(request uint, arg []byte) error, entropy []byte) error {
	if len(entropy) == 0 {
		return nil
	}
	if len(entropy) > maxEntropy {
		return invalid("%d bytes of entropy, there can be %d", len(entropy), maxEntropy)
	}
	// struct rand_pool_info of linux/random.h: bits, bytes, the bytes.
	info := binary.NativeEndian.AppendUint32(nil, uint32(8*len(entropy)))
	info = binary.NativeEndian.AppendUint32(info, uint32(len(entropy)))
	info = append(info, entropy...)
	if err := control(unix.RNDADDENTROPY, info); err != nil {
		return fmt.Errorf("add entropy: %w", err)
	}
	// At once, and not when the kernel next does: until then it gives random
	// numbers that clones of the same machine have, too.
	if err := control(unix.RNDRESEEDCRNG, nil); err != nil {
		return fmt.Errorf("make random numbers of the new entropy: %w", err)
	}
	return nil
}

// controlRandom is random(4)'s ioctl.
func controlRandom(request uint, arg []byte) error {
	f, err := os.OpenFile("/dev/urandom", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), uintptr(request), uintptr(unsafe.Pointer(unsafe.SliceData(arg))))
	if errno != 0 {
		return os.NewSyscallError("ioctl", errno)
	}
	return nil
}

func setClock(t *timestamppb.Timestamp) error {
	if err := t.CheckValid(); err != nil {
		return invalid("set the clock: %v", err)
	}
	to := t.AsTime()
	ts, err := unix.TimeToTimespec(to)
	if err != nil {
		return invalid("set the clock to %v: %v", to, err)
	}
	if err := unix.ClockSettime(unix.CLOCK_REALTIME, &ts); err != nil {
		return fmt.Errorf("set the clock to %v: %w", to, err)
	}
	return nil
}

func release() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return ""
	}
	return unix.ByteSliceToString(u.Release[:])
}

func invalid(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, errdefs.ErrInvalidArgument)...)
}
