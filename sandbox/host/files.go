package host

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/containerd-kuasar/containerd-kuasar/internal/failpoint"
)

var fpShm = failpoint.New("host/files/shm")

// shmSize is the size of a pod's /dev/shm in bytes, as containerd and docker
// have it.
const shmSize = 64 << 20

const (
	devShm      = "/dev/shm"
	etcHosts    = "/etc/hosts"
	etcHostname = "/etc/hostname"
	etcResolv   = "/etc/resolv.conf"
)

// MakeFiles writes the pod's hosts, hostname and resolv.conf. They belong to the
// root of user, which may be nil. Idempotent.
func MakeFiles(dir string, config *runtime.PodSandboxConfig, user *IDMap) error {
	hostname := config.GetHostname()
	if hostname == "" {
		var err error
		if hostname, err = os.Hostname(); err != nil {
			return err
		}
	}
	hosts, err := hostFile(etcHosts)
	if err != nil {
		return err
	}
	resolv := resolvConf(config.GetDnsConfig())
	if config.GetDnsConfig() == nil {
		if resolv, err = hostFile(etcResolv); err != nil {
			return err
		}
	}
	for name, content := range map[string]string{"hostname": hostname + "\n", "hosts": hosts, "resolv.conf": resolv} {
		if err := writeFile(filepath.Join(dir, name), content, user); err != nil {
			return err
		}
	}
	return nil
}

// MakeShm mounts the pod's /dev/shm unless it shares the host's. Idempotent.
func MakeShm(dir string, config *runtime.PodSandboxConfig) error {
	if hostIPC(config) {
		if _, err := os.Stat(devShm); err != nil {
			return fmt.Errorf("share the host's ipc: %w", err)
		}
		return nil
	}
	return mountShm(filepath.Join(dir, "shm"))
}

// RemoveShm unmounts /dev/shm. Idempotent.
func RemoveShm(dir string) error { return Unmount(filepath.Join(dir, "shm")) }

// Passable says whether any user may pass through dir and all above it, as the
// root of a user namespace must to reach a root file system in it.
func Passable(dir string) error {
	for ; ; dir = filepath.Dir(dir) {
		info, err := os.Stat(dir)
		if err != nil {
			return err
		}
		if info.Mode().Perm()&0o001 == 0 {
			return fmt.Errorf("users of pods with a user namespace cannot pass through %s (mode %s): let them with chmod o+x: %w",
				dir, info.Mode().Perm(), errdefs.ErrFailedPrecondition)
		}
		if dir == "/" || dir == "." {
			return nil
		}
	}
}

func hostIPC(config *runtime.PodSandboxConfig) bool {
	return config.GetLinux().GetSecurityContext().GetNamespaceOptions().GetIpc() == runtime.NamespaceMode_NODE
}

// hostFile reads one of the host's own. A host without it has nothing to say.
func hostFile(path string) (string, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	return string(b), err
}

// resolvConf writes resolv.conf(5).
func resolvConf(dns *runtime.DNSConfig) string {
	var b strings.Builder
	if s := dns.GetSearches(); len(s) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(s, " "))
	}
	for _, s := range dns.GetServers() {
		fmt.Fprintf(&b, "nameserver %s\n", s)
	}
	if o := dns.GetOptions(); len(o) > 0 {
		fmt.Fprintf(&b, "options %s\n", strings.Join(o, " "))
	}
	return b.String()
}

func writeFile(path, content string, user *IDMap) error {
	// The inode stays: containers may have it mounted.
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC|unix.O_NOFOLLOW, 0o644)
	if err != nil {
		return err
	}
	_, err = f.WriteString(content)
	if err == nil {
		err = f.Chmod(0o644) // whatever the umask
	}
	if err == nil && user != nil {
		err = f.Chown(user.Root())
	}
	return errors.Join(err, f.Close())
}

func mountShm(path string) error {
	if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	own, err := device(path)
	if err != nil {
		return err
	}
	if parent, err := device(filepath.Dir(path)); err != nil || own != parent {
		return err // it is there already
	}
	data := fmt.Sprintf("mode=1777,size=%d", shmSize)
	if err := unix.Mount("shm", path, "tmpfs", unix.MS_NOEXEC|unix.MS_NOSUID|unix.MS_NODEV, data); err != nil {
		return &os.PathError{Op: "mount tmpfs", Path: path, Err: err}
	}
	fpShm.Hit()
	return nil
}
