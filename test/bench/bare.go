package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/containerd-kuasar/containerd-kuasar/test/bed"
	"github.com/containerd-kuasar/containerd-kuasar/vmm"
	"github.com/containerd-kuasar/containerd-kuasar/vmm/qemu"
)

// bare is a machine like a pod's, of the same kernel and initramfs, without
// share, vsock and network. Its PID 1 says that it is there and no more.
type bare struct {
	dir    string
	config vmm.Config
}

// here is what it says.
const here = "first process is here\n"

func newBare(b *bench) (*bare, error) {
	dir, err := os.MkdirTemp("", "bare")
	if err != nil {
		return nil, err
	}
	initramfs, err := os.ReadFile(b.Path(filepath.Join(bed.GuestDir(), "initramfs.cpio")))
	if err != nil {
		return nil, err
	}
	// The kernel unpacks one archive after the other: ours replaces the agent.
	path := filepath.Join(dir, "initramfs")
	if err := os.WriteFile(path, append(initramfs, archive()...), 0o600); err != nil {
		return nil, err
	}
	o := vmm.Defaults()
	return &bare{dir, vmm.Config{
		ID: "bare", Dir: dir, Accel: accel(), Kernel: b.Path(filepath.Join(bed.GuestDir(), "vmlinux")), Initrd: path,
		Cmdline: o.KernelParams, CPUs: 1, Memory: 128 << 20, Slots: o.Slots,
	}}, nil
}

// accel is what pods have, too, unless the bed says otherwise.
func accel() vmm.Accel {
	if os.Getenv("KUASAR_ACCEL") == string(vmm.KVM) {
		return vmm.KVM
	}
	return vmm.TCG
}

func (m *bare) close() { _ = os.RemoveAll(m.dir) }

// boot returns the time from QEMU's start to PID 1.
func (m *bare) boot(ctx context.Context) (time.Duration, error) {
	in, out, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	defer in.Close()
	defer out.Close()
	c := m.config
	c.Console = out
	var cmd *exec.Cmd
	c.Launch = func(ctx context.Context, line vmm.Command) error {
		cmd = exec.CommandContext(ctx, line.Args[0], line.Args[1:]...)
		cmd.ExtraFiles = line.Files
		return cmd.Start()
	}
	begin := time.Now()
	if _, err := (qemu.Driver{}).Start(ctx, c); err != nil {
		return 0, fmt.Errorf("start a bare machine: %w", err)
	}
	out.Close()
	err = await(in, here[:len(here)-1])
	took := time.Since(begin)
	kill := cmd.Process.Kill()
	_ = cmd.Wait() // it was killed
	return took, errors.Join(err, kill)
}

// archive is a cpio with PID 1, and the console that the kernel opens for it.
func archive() []byte {
	var b bytes.Buffer
	entry(&b, "dev", 0o040755, nil)
	device := 5<<8 | 1
	entry(&b, "dev/console", 0o020600, nil, device)
	entry(&b, "init", 0o100755, first())
	entry(&b, "TRAILER!!!", 0, nil)
	return b.Bytes()
}

// entry is of the format "newc" (the kernel's Documentation/driver-api/early-userspace/buffer-format.rst).
func entry(b *bytes.Buffer, name string, mode int, data []byte, device ...int) {
	var major, minor int
	if len(device) > 0 {
		major, minor = device[0]>>8, device[0]&0xff
	}
	fmt.Fprint(b, "070701")
	for _, field := range []int{0, mode, 0, 0, 1, 0, len(data), 0, 0, major, minor, len(name) + 1, 0} {
		fmt.Fprintf(b, "%08x", field)
	}
	pad := func() { b.Write(make([]byte, -b.Len()&3)) }
	b.WriteString(name + "\x00")
	pad()
	b.Write(data)
	pad()
}

// first is a program for x86-64 that writes here to its stdout and waits.
func first() []byte {
	const base, header, segment = 0x400000, 64, 56
	const start = base + header + segment
	code := []byte{
		0xb8, 1, 0, 0, 0, // mov eax, write
		0xbf, 1, 0, 0, 0, // mov edi, stdout
		0x48, 0x8d, 0x35, 16, 0, 0, 0, // lea rsi, [rip+16]: what is behind the code
		0xba, byte(len(here)), 0, 0, 0, // mov edx, its length
		0x0f, 0x05, // syscall
		0xb8, 34, 0, 0, 0, // mov eax, pause
		0x0f, 0x05, // syscall
		0xeb, 0xf7, // again
	}
	code = append(code, here...)
	size := uint64(header + segment + len(code))
	var b bytes.Buffer
	b.WriteString("\x7fELF\x02\x01\x01")
	b.Write(make([]byte, 9))
	for _, v := range []any{
		uint16(2), uint16(62), uint32(1), uint64(start), uint64(header), uint64(0), uint32(0),
		uint16(header), uint16(segment), uint16(1), uint16(0), uint16(0), uint16(0),
		uint32(1), uint32(5), uint64(0), uint64(base), uint64(base), size, size, uint64(0x1000),
	} {
		_ = binary.Write(&b, binary.LittleEndian, v)
	}
	b.Write(code)
	return b.Bytes()
}
