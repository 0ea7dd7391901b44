// Package guest builds what virtual machines boot: a kernel and an initramfs,
// of the distribution's kernel package and the agent. Nothing is compiled.
package guest

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containerd-kuasar/containerd-kuasar/task/api"
)

// Names of the files of a guest, in its directory.
const (
	Kernel    = "vmlinux" // not compressed: the VMM need not wait for the guest to unpack it
	Initramfs = "initramfs.cpio"
	manifest  = "manifest.json"

	// Modules has those that a guest loads when its kernel asks for them.
	Modules = "modules"
)

// agents are the modules that the agent loads; see package task/guest.
var agents = []string{
	"virtio_pci", "virtio_mmio", "vmw_vsock_virtio_transport", // before it says hello
	"virtiofs", "virtio_net", "virtio_blk", "erofs", "ext4", "overlay", // when they are needed
}

// extras are directories of modules, in a kernel's, that containers may have the
// kernel ask for, and single ones: networks within a pod. The last two the
// agent loads itself, in guests that are resized or report their free memory.
var extras = []string{"net", "drivers/net/dummy.ko", "drivers/net/ifb.ko", "drivers/net/macvlan.ko", "drivers/net/tun.ko", "drivers/net/veth.ko", "drivers/net/vrf.ko", "drivers/net/ipvlan", "drivers/net/vxlan", "drivers/net/wireguard", "drivers/virtio/virtio_mem.ko", "drivers/virtio/virtio_balloon.ko"}

// Config names what a guest is made of.
type Config struct {
	Package string // directory of an unpacked kernel package: boot/ and lib/modules/
	Agent   string // kuasar-task, built for guests
	Version string // of the agent
	Out     string // directory; made if it is not there

	// Modules to have, by name; nil for the agent's.
	Modules []string
}

// Manifest says what a guest is made of. It is beside the guest, as
// manifest.json.
type Manifest struct {
	Kernel   string            `json:"kernel"` // its release
	Agent    string            `json:"agent"`  // its version
	Protocol uint32            `json:"protocol"`
	Modules  []string          `json:"modules"` // files, as they are loaded
	Digests  map[string]string `json:"digests"` // of files
}

// Read returns the manifest of the guest in a directory.
func Read(dir string) (Manifest, error) {
	var m Manifest
	text, err := os.ReadFile(filepath.Join(dir, manifest))
	if err == nil {
		err = json.Unmarshal(text, &m)
	}
	if err != nil {
		return Manifest{}, fmt.Errorf("manifest of the guest: %w", err)
	}
	return m, nil
}

// Build makes a guest. What was in its place is replaced, the manifest last.
func Build(c Config) (Manifest, error) {
	release, err := find(filepath.Join(c.Package, "lib/modules"))
	if err != nil {
		return Manifest{}, fmt.Errorf("build guest: %w", err)
	}
	m := Manifest{Kernel: release, Agent: c.Version, Protocol: api.Protocol, Digests: map[string]string{}}
	if err := build(c, &m); err != nil {
		return Manifest{}, fmt.Errorf("build guest with kernel %s: %w", release, err)
	}
	return m, nil
}

func build(c Config, m *Manifest) error {
	kernel, err := os.ReadFile(filepath.Join(c.Package, "boot/vmlinuz-"+m.Kernel))
	if err != nil {
		return err
	}
	if kernel, err = unpack(kernel); err != nil {
		return err
	}
	wanted := c.Modules
	if wanted == nil {
		wanted = agents
	}
	set, err := modules(filepath.Join(c.Package, "lib/modules", m.Kernel), wanted)
	if err != nil {
		return err
	}
	for _, f := range set.files {
		m.Modules = append(m.Modules, filepath.Base(f))
	}
	initramfs, err := archive(c.Agent, set)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(c.Out, 0o755); err != nil {
		return err
	}
	if err := shelve(filepath.Join(c.Package, "lib/modules", m.Kernel), filepath.Join(c.Out, Modules)); err != nil {
		return err
	}
	for name, data := range map[string][]byte{Kernel: kernel, Initramfs: initramfs} {
		sum := sha256.Sum256(data)
		m.Digests[name] = "sha256:" + hex.EncodeToString(sum[:])
		if err := replace(filepath.Join(c.Out, name), data); err != nil {
			return err
		}
	}
	text, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	return replace(filepath.Join(c.Out, manifest), append(text, '\n'))
}

// find returns the one kernel release in a package.
func find(dir string) (string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return "", err
	}
	if len(entries) != 1 {
		return "", fmt.Errorf("%s has %d kernels: one is needed", dir, len(entries))
	}
	return entries[0].Name(), nil
}

// archive is the initramfs: the agent as /init, the modules, and the devices
// that a process must have as its first files.
func archive(agent string, set moduleSet) ([]byte, error) {
	var a cpio
	a.dir("dev", 0o755)
	a.device("dev/console", 0o600, 5, 1)
	a.device("dev/null", 0o666, 1, 3)
	init, err := os.ReadFile(agent)
	if err != nil {
		return nil, err
	}
	a.file("init", 0o755, init)
	a.dir("modules", 0o755)
	a.file("modules/order", 0o644, []byte(set.order))
	for _, path := range set.files {
		data, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		a.file("modules/"+filepath.Base(path), 0o644, data)
	}
	return a.end(), nil
}

// replace writes a file whole or not at all: a VMM may be about to read it.
func replace(path string, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*")
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Chmod(0o644), f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}
