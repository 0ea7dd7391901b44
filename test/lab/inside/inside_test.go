// Package inside has the tests that prove the lab: they run in its machine.
package inside

import (
	"encoding/binary"
	"os"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// lab skips where this is not the lab's machine.
func lab(t *testing.T) {
	t.Helper()
	if os.Getenv("KUASAR_LAB") == "" {
		t.Skip("needs the lab: make lab")
	}
}

// Requests of /dev/kvm, and what they take; see the kernel's
// Documentation/virt/kvm/api.rst.
const (
	kvmGetAPIVersion       = 0xae00
	kvmCreateVM            = 0xae01
	kvmGetVCPUMmapSize     = 0xae04
	kvmSetUserMemoryRegion = 0x4020ae46
	kvmCreateVCPU          = 0xae41
	kvmRun                 = 0xae80
	kvmGetRegs             = 0x8090ae81
	kvmSetRegs             = 0x4090ae82
	kvmGetSregs            = 0x8138ae83
	kvmSetSregs            = 0x4138ae84

	exitHalt   = 5 // KVM_EXIT_HLT
	exitReason = 8 // offset in struct kvm_run

	registersSize = 144 // struct kvm_regs; rax is its first, rip and rflags its last
	ripOffset     = 128
	rflagsOffset  = 136
	sregsSize     = 312 // struct kvm_sregs, which begins with cs
)

func ioctl(t *testing.T, what string, fd int, request, arg uintptr) int {
	t.Helper()
	n, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, arg)
	if errno != 0 {
		t.Fatalf("%s: %v", what, errno)
	}
	return int(n)
}

// A guest adds two and three. That /dev/kvm is there proves nothing.
func TestKVM(t *testing.T) {
	lab(t)
	kvm, err := unix.Open("/dev/kvm", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(kvm)
	if v := ioctl(t, "version", kvm, kvmGetAPIVersion, 0); v != 12 {
		t.Fatalf("version %d", v)
	}
	vm := ioctl(t, "make machine", kvm, kvmCreateVM, 0)
	defer unix.Close(vm)
	memory, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	copy(memory, []byte{
		0xb8, 0x02, 0x00, // mov $2, %ax
		0x05, 0x03, 0x00, // add $3, %ax
		0xf4, // hlt
	})
	const at = 0x1000 // in the guest
	region := struct {
		slot, flags                  uint32
		guestAddress, size, userAddr uint64
	}{guestAddress: at, size: 4096, userAddr: uint64(uintptr(unsafe.Pointer(&memory[0])))}
	ioctl(t, "give memory", vm, kvmSetUserMemoryRegion, uintptr(unsafe.Pointer(&region)))
	cpu := ioctl(t, "make vCPU", vm, kvmCreateVCPU, 0)
	defer unix.Close(cpu)
	run, err := unix.Mmap(cpu, 0, ioctl(t, "size of state", kvm, kvmGetVCPUMmapSize, 0), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	var sregs [sregsSize]byte
	ioctl(t, "read segments", cpu, kvmGetSregs, uintptr(unsafe.Pointer(&sregs)))
	binary.LittleEndian.PutUint64(sregs[0:], 0)  // cs.base
	binary.LittleEndian.PutUint16(sregs[12:], 0) // cs.selector
	ioctl(t, "write segments", cpu, kvmSetSregs, uintptr(unsafe.Pointer(&sregs)))
	var registers [registersSize]byte
	binary.LittleEndian.PutUint64(registers[ripOffset:], at)
	binary.LittleEndian.PutUint64(registers[rflagsOffset:], 2) // bit 1 is always set
	ioctl(t, "write registers", cpu, kvmSetRegs, uintptr(unsafe.Pointer(&registers)))
	ioctl(t, "run", cpu, kvmRun, 0)
	if reason := binary.LittleEndian.Uint32(run[exitReason:]); reason != exitHalt {
		t.Fatalf("the guest ended for reason %d", reason)
	}
	ioctl(t, "read registers", cpu, kvmGetRegs, uintptr(unsafe.Pointer(&registers)))
	if rax := binary.LittleEndian.Uint64(registers[0:]); rax&0xffff != 5 {
		t.Errorf("2 + 3 = %d", rax&0xffff)
	}
}

// The kernel gives a guest a context id on vsock.
func TestVsock(t *testing.T) {
	lab(t)
	const setGuestCID, setOwner = 0x4008af60, 0xaf01
	fd, err := unix.Open("/dev/vhost-vsock", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	ioctl(t, "take", fd, setOwner, 0)
	cid := uint64(4242)
	ioctl(t, "set context id", fd, setGuestCID, uintptr(unsafe.Pointer(&cid)))
}

func TestCgroups(t *testing.T) {
	lab(t)
	b, err := os.ReadFile("/sys/fs/cgroup/cgroup.controllers")
	if err != nil {
		t.Fatal(err)
	}
	have := strings.Fields(string(b))
	for _, want := range []string{"cpu", "cpuset", "io", "memory", "pids"} {
		found := false
		for _, c := range have {
			found = found || c == want
		}
		if !found {
			t.Errorf("no controller %s among %v", want, have)
		}
	}
}
