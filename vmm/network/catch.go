package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Catch takes the TCP connections that are made inside a pod's network
// namespace to its loopback address, whatever their port: containerd forwards
// ports so, and what it means listens in the guest. The LocalAddr of a
// connection is what was dialed.
//
// A BPF program in the place where the kernel looks for listeners (sk_lookup,
// Linux 5.9) gives them to this one. It is not in the way of anything else, and
// it ends with the process: nothing is left in the namespace.
type Catch struct {
	net.Listener
	sockets *ebpf.Map
	program *ebpf.Program
	attach  *link.NetNsLink
}

// NewCatch begins to take connections in the namespace at path. The caller
// closes it.
func NewCatch(netns string) (_ *Catch, err error) {
	c := &Catch{}
	defer func() {
		if err != nil {
			err = fmt.Errorf("catch connections to ports of %s: %w", netns, errors.Join(err, c.Close()))
		}
	}()
	err = inside(netns, func(*netlink.Handle) (err error) {
		var l net.ListenConfig
		l.SetMultipathTCP(false) // a sockmap takes plain TCP only
		c.Listener, err = l.Listen(context.Background(), "tcp4", "127.0.0.1:0")
		return err
	})
	if err != nil {
		return nil, err
	}
	if err := c.load(); err != nil {
		return nil, err
	}
	ns, err := os.Open(netns)
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	if c.attach, err = link.AttachNetNs(int(ns.Fd()), c.program); err != nil {
		return nil, fmt.Errorf("attach to network namespace: %w", err)
	}
	return c, nil
}

// load makes the program, and a map of the one socket that it knows.
func (c *Catch) load() (err error) {
	if c.sockets, err = ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.SockMap, KeySize: 4, ValueSize: 8, MaxEntries: 1}); err != nil {
		return fmt.Errorf("make sockmap: %w: the kernel needs CONFIG_BPF_SYSCALL and CONFIG_NET_SOCK_MSG", err)
	}
	raw, err := c.Listener.(syscall.Conn).SyscallConn()
	if err != nil {
		return err
	}
	var put error
	if err := raw.Control(func(fd uintptr) { put = c.sockets.Put(uint32(0), uint64(fd)) }); err != nil {
		return err
	}
	if put != nil {
		return fmt.Errorf("add listener to sockmap: %w", put)
	}
	c.program, err = ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.SkLookup, AttachType: ebpf.AttachSkLookup, License: "Apache-2.0",
		Instructions: choose(c.sockets.FD()),
	})
	if err != nil {
		return fmt.Errorf("load program: %w: the kernel needs sk_lookup (Linux 5.9)", err)
	}
	return nil
}

// Fields of struct bpf_sk_lookup (linux/bpf.h), and its verdict.
const (
	lookupFamily   = 8
	lookupProtocol = 12
	lookupLocalIP4 = 40
	skPass         = 1
)

// choose is the program: TCP to 127.0.0.0/8 is for the map's socket, and for
// all else the kernel goes on to look.
func choose(sockets int) asm.Instructions {
	return asm.Instructions{
		asm.Mov.Reg(asm.R6, asm.R1),
		asm.LoadMem(asm.R2, asm.R6, lookupFamily, asm.Word),
		asm.JNE.Imm(asm.R2, unix.AF_INET, "pass"),
		asm.LoadMem(asm.R2, asm.R6, lookupProtocol, asm.Word),
		asm.JNE.Imm(asm.R2, unix.IPPROTO_TCP, "pass"),
		asm.LoadMem(asm.R2, asm.R6, lookupLocalIP4, asm.Word),
		asm.HostTo(asm.BE, asm.R2, asm.Word),
		asm.RSh.Imm(asm.R2, 24),
		asm.JNE.Imm(asm.R2, 127, "pass"),

		asm.StoreImm(asm.RFP, -4, 0, asm.Word),
		asm.LoadMapPtr(asm.R1, sockets),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, -4),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "pass"),

		asm.Mov.Reg(asm.R7, asm.R0),
		asm.Mov.Reg(asm.R1, asm.R6),
		asm.Mov.Reg(asm.R2, asm.R7),
		asm.Mov.Imm(asm.R3, 0),
		asm.FnSkAssign.Call(),
		asm.Mov.Reg(asm.R1, asm.R7),
		asm.FnSkRelease.Call(),

		asm.Mov.Imm(asm.R0, skPass).WithSymbol("pass"),
		asm.Return(),
	}
}

// Close ends it. Connections that were taken go on.
func (c *Catch) Close() error {
	var errs []error
	if c.attach != nil {
		errs = append(errs, c.attach.Close())
	}
	if c.Listener != nil {
		errs = append(errs, c.Listener.Close())
	}
	// These two may be nil: Close knows.
	return errors.Join(append(errs, c.program.Close(), c.sockets.Close())...)
}
