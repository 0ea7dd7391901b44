// Package vmm is the backend for pods in virtual machines: one VM per pod, with
// an agent as its first process.
//
// A Driver knows one virtual machine monitor and nothing else. What all of them
// need is here, written once: processes that survive the daemon, the share that
// the guest's containers come from, the way to the guest's agent, and the life
// of a pod.
package vmm

import (
	"context"
	"net"
	"os"
)

// Driver runs virtual machines with one VMM. It is safe for concurrent use and
// keeps nothing of the machines.
type Driver interface {
	// Needs are those of all of its machines.
	Needs() Needs

	// Check says whether this node can run a machine of c. What is missing is
	// errdefs.ErrUnavailable or ErrFailedPrecondition with the remedy, what the
	// VMM cannot do errdefs.ErrInvalidArgument. It starts nothing.
	Check(ctx context.Context, c Config) error

	// Start runs a machine and returns when the VMM has taken all of c; the
	// guest need not run yet. Every process is launched by c.Launch. On error
	// the caller ends those; nothing else may be left but files in c.Dir.
	Start(ctx context.Context, c Config) (VM, error)

	// Attach returns a machine that an earlier daemon started and whose VMM
	// still lives. It need not talk to the VMM.
	Attach(ctx context.Context, c Config) (VM, error)
}

// Programmer is a Driver that says which program its VMM is: given, or where it
// is looked for.
type Programmer interface {
	Program(given string) (path string, err error)
}

// Needs say which processes of the host serve a machine, beside the VMM.
type Needs struct {
	// Share is a vhost-user file system daemon for each of Config.Shares.
	Share bool
	// Vsock is a vsock device. A VMM without that need serves hybrid vsock as a
	// unix socket itself, at Config.Vsock.Path.
	Vsock bool
}

// Templater is a driver whose machines can be saved once they have booted, and
// cloned from that. It is found by type assertion.
type Templater interface {
	// Inputs are all that a clone with c has in common with its template. Of
	// the files the content counts, the rest is in text.
	Inputs(c Config) (files []string, text string, err error)

	// StartTemplate is Start without any of c's devices, with api.TemplateParam
	// on the command line of the guest's kernel.
	StartTemplate(ctx context.Context, c Config) (Template, error)

	// Load starts a machine that is as the one in dir was when it was saved:
	// it does not run, and has none of c's devices yet. On error the caller ends
	// its process.
	Load(ctx context.Context, c Config, dir string) error

	// Resume gives the machine that Load left in c.Dir, which may have had
	// another name then, c's devices, and has it go on. Like Start it returns
	// before the guest is ready; on error the caller ends the machine.
	Resume(ctx context.Context, c Config) (VM, error)
}

// Template is a machine that is going to be saved.
type Template interface {
	VM

	// Save stops the machine for good, and writes what Clone needs to files in
	// dir, which is empty but for names that begin with a dot.
	Save(ctx context.Context, dir string) error
}

// VM is the control of a machine that runs: what it can do is found by type
// assertion. That its VMM has ended the caller knows from the process, and it
// ends the VMM by that. Safe for concurrent use.
type VM any

// What a VM may be.
type (
	// DiskPlugger adds and removes block devices while the guest runs. A
	// removed one is gone from the guest when the call returns, and one that
	// was never there is errdefs.ErrNotFound. With all slots taken there is
	// errdefs.ErrResourceExhausted.
	DiskPlugger interface {
		PlugDisk(ctx context.Context, d Disk) error
		UnplugDisk(ctx context.Context, id string) error
	}

	// NICPlugger does so with network interfaces.
	NICPlugger interface {
		PlugNIC(ctx context.Context, n NIC) error
		UnplugNIC(ctx context.Context, id string) error
	}

	// Resizer changes the number of processors and the memory while the guest
	// runs, up to Config.MaxCPUs and MaxMemory: more is errdefs.ErrOutOfRange.
	// Both calls can be repeated.
	Resizer interface {
		// PlugCPUs plugs processors until there are so many. The guest need not
		// use new ones yet. None is removed: the guest's agent puts them offline.
		PlugCPUs(ctx context.Context, cpus uint32) error

		// ResizeMemory returns how many bytes of memory the guest has when that
		// is what was asked for, or when it did not get there in some time. It
		// is never less than what the machine was started with.
		ResizeMemory(ctx context.Context, size uint64) (has uint64, err error)
	}
)

// Config is a machine to make. Sizes are in bytes.
type Config struct {
	ID  string // of the sandbox
	Dir string // of the machine alone; its processes are started in it

	VMM     string // the VMM's program; empty for where the driver looks
	Machine string // type of machine; empty for the driver's choice
	Accel   Accel  // KVM or TCG
	Kernel  string
	Initrd  string
	Cmdline string // appended to what the driver needs itself

	CPUs   uint32
	Memory uint64

	// MaxCPUs and MaxMemory are what a Resizer may give it later; not more than
	// the above is for a machine that keeps its size.
	MaxCPUs   uint32
	MaxMemory uint64

	// FreePageReporting is for a device by which the guest says what memory it
	// has free, for the VMM to give back to the host.
	FreePageReporting bool

	Vsock  Vsock
	Shares []Share
	NICs   []NIC
	Disks  []Disk
	Slots  int // free slots for devices that are plugged later

	// Console takes what the guest's kernel prints; nil if nobody wants that.
	Console *os.File

	// Launch runs a process of the machine. Start calls it; it is nil for
	// Attach.
	Launch func(ctx context.Context, c Command) error

	// Process is what Launch ran.
	Process func() Process
}

// Share is a directory of the host that the guest mounts by its tag.
type Share struct {
	Tag    string
	Dir    string // on the host
	Socket string // in Config.Dir, of the vhost-user file system daemon, which listens
}

// NIC is a network interface of the guest.
type NIC struct {
	ID  string // unique in the machine: letters, digits and dashes
	MAC net.HardwareAddr
	MTU uint32
	Tap *os.File // with IFF_VNET_HDR; the caller closes it after the call
	// Queues there are, each a Tap of its own beside the first.
	More []*os.File
}

// Disk is a block device of the guest.
type Disk struct {
	ID       string // as NIC's; the guest sees it as the disk's serial number
	Path     string // of a block device or a raw image on the host
	ReadOnly bool
}

// Accel is what executes the guest's instructions.
type Accel string

// A Config has one of the first two; an operator may leave it to Auto.
const (
	KVM  Accel = "kvm"
	TCG  Accel = "tcg"
	Auto Accel = "auto" // KVM where that has proved to boot a guest
)
