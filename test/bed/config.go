package bed

import (
	"bytes"
	"cmp"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"text/template"
	"time"

	"github.com/containerd-kuasar/containerd-kuasar/test/images"
)

// bridge is the pod network's.
const bridge = "bed0"

// pluginDir is where Debian's containernetworking-plugins are.
const pluginDir = "/usr/lib/cni"

// configuration is containerd's. Everything that has a path has one below
// Dir; what is not named here is as it comes.
var configuration = template.Must(template.New("config.toml").Parse(`version = 4
root = '{{.Dir}}/r'
state = '{{.Dir}}/s'
temp = '{{.Dir}}/t'
imports = []

[debug]
  level = '{{or .Level "debug"}}'

[plugins.'io.containerd.server.v1.grpc']
  address = '{{.Dir}}/sock'

[plugins.'io.containerd.server.v1.ttrpc']
  address = '{{.Dir}}/sock.ttrpc'

{{if .Shim}}
[plugins.'io.containerd.shim.v1.manager']
  socket_dir = '{{.Shim}}'
{{end}}
[plugins.'io.containerd.internal.v1.opt']
  path = '{{.Dir}}/opt'

[plugins.'io.containerd.nri.v1.nri']
  socket_path = '{{.Dir}}/nri.sock'
  plugin_path = '{{.Dir}}/nri'
  plugin_config_path = '{{.Dir}}/nri'

[plugins.'io.containerd.cri.v1.images']
  snapshotter = 'overlayfs'
  [plugins.'io.containerd.cri.v1.images'.pinned_images]
    sandbox = '{{.Pause}}'
  [plugins.'io.containerd.cri.v1.images'.registry]
    config_path = '{{.Dir}}/hosts'

[plugins.'io.containerd.transfer.v1.local']
  config_path = '{{.Dir}}/hosts'

[plugins.'io.containerd.cri.v1.runtime']
  # Pods ask for scores that a test under a raised score may not give.
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  disable_hugetlb_controller = false
  cdi_spec_dirs = ['{{.Dir}}/cdi']

  [plugins.'io.containerd.cri.v1.runtime'.cni]
    bin_dirs = ['{{.Plugins}}']
    conf_dir = '{{.Dir}}/cni'

  [plugins.'io.containerd.cri.v1.runtime'.containerd]
    default_runtime_name = 'runc'

    [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
      runtime_type = 'io.containerd.runc.v2'
      [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
        BinaryName = 'runc'
        Root = '{{.Dir}}/s/runc'
        SystemdCgroup = {{.Systemd}}

    [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.kuasar-runc]
      runtime_type = 'io.containerd.kuasar.v1'
      sandboxer = 'runc'
      disable_pause_image_pull = true
      [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.kuasar-runc.options]
        SystemdCgroup = {{.Systemd}}

    [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.kuasar-wasm]
      runtime_type = 'io.containerd.kuasar.v1'
      sandboxer = 'wasm'
      disable_pause_image_pull = true
      [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.kuasar-wasm.options]
        engines = ['wazero', 'wasmtime', 'wasmedge']
{{range $name, $m := .Machines}}
    [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.{{$name}}]
      runtime_type = 'io.containerd.kuasar.v1'
      sandboxer = 'vmm'
      snapshotter = '{{$m.Snapshotter}}'
      disable_pause_image_pull = true
      [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.{{$name}}.options]
        accel = '{{$.Accel}}'
        memory = 128
        boot_timeout = {{$.Boot}}
        templates = {{$m.Templates}}
        pool = {{$m.Pool}}
        kernel = '{{$.Guest}}/vmlinux'
        initrd = '{{$.Guest}}/initramfs.cpio'
        {{with $.Vsock}}vsock_path = '{{.}}'{{end}}
{{end}}
{{with .Scratch}}
[plugins.'io.containerd.snapshotter.v1.blockfile']
  scratch_file = '{{.}}'
  fs_type = 'ext4'
  mount_options = ['loop']
{{end}}

{{.Extra}}
`))

// network is a bridge with masquerading and host ports, as most clusters
// have, of both kinds of IP. Its addresses are the bed's alone: so is the network namespace.
const network = `{
  "cniVersion": "1.0.0",
  "name": "bed",
  "plugins": [
    {
      "type": "bridge",
      "bridge": "bed0",
      "isGateway": true,
      "ipMasq": true,
      "hairpinMode": true,
      "ipam": {
        "type": "host-local",
        "dataDir": "%s/ipam",
        "ranges": [[{"subnet": "10.88.0.0/16"}], [{"subnet": "fd88::/64"}]],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]
      }
    },
    {"type": "portmap", "capabilities": {"portMappings": true}}
  ]
}
`

// mirror sends every pull of every registry to ours, and to no other.
const mirror = `server = "%[1]s"

[host."%[1]s"]
  capabilities = ["pull", "resolve"]
`

// maxShim is the longest socket_dir that containerd takes; in a longer one it
// looks for a place itself.
const maxShim = 38

// machine is a handler of the vmm sandboxer.
type machine struct {
	Snapshotter string // the usual one if it is empty
	Templates   bool
	Pool        int
}

func (b *Bed) configure() error {
	shim := filepath.Join(b.Dir, "shim")
	if len(shim) > maxShim {
		shim = ""
	}
	machines, scratch := map[string]machine{VMM: {}, VMMClone: {Templates: true}, VMMPool: {Templates: true, Pool: 1}}, ""
	if b.options.Blocks {
		machines[VMMBlock], scratch = machine{Snapshotter: "blockfile"}, filepath.Join(b.Dir, "scratch")
		if err := makeScratch(scratch); err != nil {
			return err
		}
	}
	vsock, _ := exec.LookPath("vhost-device-vsock") // the daemon has another PATH
	var config bytes.Buffer
	err := configuration.Execute(&config, map[string]any{
		"Systemd": Systemd(), "Machines": machines, "Scratch": scratch,
		"Dir": b.Dir, "Shim": shim, "Plugins": pluginDir, "Pause": images.Pause, "Level": b.options.Level, "Extra": b.options.Config,
		"Guest": b.Path(GuestDir()), "Vsock": vsock, "Accel": cmp.Or(os.Getenv("KUASAR_ACCEL"), "auto"),
		"Boot": int(Patience(time.Minute).Seconds()),
	})
	if err != nil {
		return fmt.Errorf("write configuration: %w", err)
	}
	for name, content := range map[string]string{
		"config.toml":               config.String(),
		"cni/10-bed.conflist":       fmt.Sprintf(network, b.Dir),
		"hosts/_default/hosts.toml": fmt.Sprintf(mirror, b.Registry.URL()),
		"crictl.yaml":               fmt.Sprintf("runtime-endpoint: unix://%s\ntimeout: %d\n", b.Socket(), int(Patience(time.Minute).Seconds())),
	} {
		path := filepath.Join(b.Dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o711); err != nil {
			return err
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// makeScratch makes the file system that root file systems begin as.
func makeScratch(path string) error {
	const size = "48M" // each snapshot is a copy
	if out, err := exec.Command("mke2fs", "-q", "-t", "ext4", path, size).CombinedOutput(); err != nil {
		return fmt.Errorf("make a file system: %w: %s", err, out)
	}
	return nil
}
