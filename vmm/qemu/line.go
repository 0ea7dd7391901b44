package qemu

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/containerd-kuasar/containerd-kuasar/vmm"
)

// Q35 is the machine: it has what hot-plug needs, and with qboot as its firmware
// it starts as fast as a machine without PCI.
const Q35 = "q35"

// line is QEMU's command line in the making.
type line struct {
	args  []string
	files []*os.File // from descriptor 3 on
}

func newLine(program string, control *os.File) *line {
	l := &line{args: []string{program}}
	l.add("-chardev", option("socket", "id=qmp", "fd="+l.file(control), "server=on", "wait=off"))
	l.add("-mon", "chardev=qmp,mode=control")
	return l
}

func (l *line) add(args ...string) { l.args = append(l.args, args...) }

// file gives QEMU a descriptor and returns its number there.
func (l *line) file(f *os.File) string {
	const first = 3 // after stderr
	l.files = append(l.files, f)
	return strconv.Itoa(first + len(l.files) - 1)
}

// option joins QEMU's key=value pairs. In those a comma is written twice.
func option(kind string, pairs ...string) string {
	for _, p := range pairs {
		kind += "," + strings.ReplaceAll(p, ",", ",,")
	}
	return kind
}

func (l *line) machine(c vmm.Config) error {
	l.board(c)
	// Shared, since processes of the host's serve the guest's devices.
	l.add("-object", option("memory-backend-memfd", "id=mem", "size="+mebibytes(c.Memory), "share=on"))
	l.kernel(c)
	l.console(c)
	l.vsock(c.Vsock)
	for i, s := range c.Shares {
		id := "share" + strconv.Itoa(i)
		l.add("-chardev", option("socket", "id="+id, "path="+s.Socket))
		l.add("-device", option("vhost-user-fs-pci", "chardev="+id, "tag="+s.Tag, "queue-size=1024"))
	}
	for _, n := range c.NICs {
		l.nic(n)
	}
	for _, d := range c.Disks {
		l.disk(d)
	}
	l.slots(c)
	if len(l.files) > maxFiles {
		return fmt.Errorf("%d descriptors for QEMU: too many devices", len(l.files))
	}
	return nil
}

// board is the machine without devices. Its memory is the object "mem".
func (l *line) board(c vmm.Config) {
	l.add("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-name", "kuasar-"+c.ID)
	l.add("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny")
	// Only what the guest needs: every device costs time when it starts.
	l.add("-machine", "q35,hpet=off,smm=off,vmport=off,sata=off,smbus=off,usb=off,graphics=off,memory-backend=mem")
	l.add("-bios", firmware)
	l.add("-accel", string(c.Accel), "-cpu", models[c.Accel])
	l.add("-smp", processors(c), "-m", memory(c))
	if c.FreePageReporting {
		l.add("-device", "virtio-balloon-pci,free-page-reporting=on")
	}
}

const firmware = "qboot.rom"

// models are what processors are. An emulated one is without what Linux uses
// for nothing (MPX) or for a rare program (PKU) and saves at each switch between
// processes: a container starts in 0.85 of the time.
var models = map[vmm.Accel]string{vmm.KVM: "host", vmm.TCG: "max,-mpx,-pku"}

// mebibytes is a size as QEMU takes it.
func mebibytes(bytes uint64) string { return strconv.FormatUint(bytes>>20, 10) + "M" }

func (l *line) kernel(c vmm.Config) {
	l.add("-kernel", c.Kernel, "-initrd", c.Initrd, "-append", cmdline(c))
}

func (l *line) console(c vmm.Config) {
	if c.Console != nil {
		l.add("-add-fd", "set=1,fd="+l.file(c.Console))
		l.add("-chardev", "file,id=console,path=/dev/fdset/1,append=on", "-serial", "chardev:console")
	}
}

func (l *line) slots(c vmm.Config) {
	for i := range c.Slots {
		l.port(slot(i), i+1)
	}
}

// port takes one device, also while the machine runs.
func (l *line) port(id string, number int) {
	n := strconv.Itoa(number)
	l.add("-device", option("pcie-root-port", "id="+id, "chassis="+n, "slot="+n))
}

// maxFiles is far from any limit of the kernel's.
const maxFiles = 256

func slot(i int) string { return "slot" + strconv.Itoa(i) }

func (l *line) vsock(v vmm.Vsock) {
	switch {
	case v.Vhost != nil:
		cid := strconv.FormatUint(uint64(v.CID), 10)
		l.add("-device", option("vhost-vsock-pci", "guest-cid="+cid, "vhostfd="+l.file(v.Vhost)))
	case v.User != nil:
		l.add("-chardev", option("socket", "id=vsock", "fd="+l.file(v.User)))
		l.add("-device", "vhost-user-vsock-pci,chardev=vsock")
	}
}

func (l *line) nic(n vmm.NIC) {
	key, fds := "fd", l.file(n.Tap)
	device := []string{"netdev=" + n.ID, "id=" + n.ID, "mac=" + n.MAC.String(), "romfile="}
	if len(n.More) > 0 {
		key = "fds"
		for _, f := range n.More {
			fds += ":" + l.file(f)
		}
		// Two vectors for each queue, one for control and one for changes.
		device = append(device, "mq=on", "vectors="+strconv.Itoa(2*(len(n.More)+1)+2))
	}
	if n.MTU > 0 {
		device = append(device, "host_mtu="+strconv.FormatUint(uint64(n.MTU), 10))
	}
	l.add("-netdev", option("tap", "id="+n.ID, key+"="+fds))
	l.add("-device", option("virtio-net-pci", device...))
}

func (l *line) disk(d vmm.Disk) {
	mode := "read-only=off"
	if d.ReadOnly {
		mode = "read-only=on"
	}
	l.add("-blockdev", option("raw", "node-name="+d.ID, mode, "file.driver="+protocol(d.Path), "file.filename="+d.Path, "file.locking=off"))
	l.add("-device", option("virtio-blk-pci", "drive="+d.ID, "id="+d.ID, "serial="+d.ID))
}

// protocol is QEMU's driver of what is at path.
func protocol(path string) string {
	if info, err := os.Stat(path); err == nil && info.Mode()&os.ModeDevice != 0 {
		return "host_device"
	}
	return "file"
}

// cmdline is the kernel's. A guest that panics ends. What is no error is not
// printed, unless the operator's words say so: each character takes an exit of
// the guest, and all of a boot 0.2 s.
func cmdline(c vmm.Config) string {
	words := []string{"panic=-1", "quiet", "noreplace-smp", "no_timer_check"}
	if c.Console != nil {
		words = append(words, "console=ttyS0")
	}
	if c.MaxMemory > c.Memory {
		// The kernel would set 64 MiB apart for devices that cannot reach memory
		// beyond 4 GiB. The machine has none.
		words = append(words, "swiotlb=noforce")
	}
	if c.Accel == vmm.TCG && c.CPUs == 1 {
		// The timer of the local interrupt controller takes 125 ms to calibrate
		// where instructions are emulated.
		words = append(words, "nolapic_timer")
	}
	return strings.Join(append(words, c.Cmdline), " ")
}
