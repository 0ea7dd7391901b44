package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/containerd-kuasar/containerd-kuasar/vmm"
)

const greeting = `{"QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": 0}}, "capabilities": ["oob"]}}` + "\r\n"

// monitor is a QEMU that greets with text, and answers each command by what
// answer returns.
func monitor(t *testing.T, text string, answer func(command string, args map[string]any) string) *machine {
	t.Helper()
	m := newMachine(vmm.Config{Dir: t.TempDir(), Slots: 2})
	l, err := vmm.Listen(m.path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			converse(c, text, answer)
		}
	}()
	return m
}

func converse(c net.Conn, text string, answer func(string, map[string]any) string) {
	defer c.Close()
	fmt.Fprint(c, text)
	in := json.NewDecoder(c)
	for {
		var command struct {
			Execute   string
			Arguments map[string]any
		}
		if err := in.Decode(&command); err != nil {
			return
		}
		if command.Execute == "qmp_capabilities" {
			fmt.Fprintln(c, `{"return": {}}`)
			continue
		}
		reply := answer(command.Execute, command.Arguments)
		if reply == "end" {
			return
		}
		fmt.Fprint(c, reply)
	}
}

const (
	fine    = `{"return": {}}` + "\r\n"
	taken   = `{"error": {"class": "GenericError", "desc": "slot is in use"}}` + "\r\n"
	missing = `{"error": {"class": "DeviceNotFound", "desc": "no such device"}}` + "\r\n"
	unknown = `{"error": {"class": "GenericError", "desc": "Failed to find node with node-name='disk'"}}` + "\r\n"
	stop    = `{"event": "STOP", "timestamp": {"seconds": 1, "microseconds": 2}}` + "\r\n"
	deleted = `{"event": "DEVICE_DELETED", "data": {"device": "disk", "path": "/x"}, "timestamp": {"seconds": 1, "microseconds": 2}}` + "\r\n"
)

// ping is a command with no effect.
func (m *machine) ping(ctx context.Context) error {
	return m.do(ctx, "ask QEMU", func(s *session) error { return s.run(ctx, "query-status", nil, nil) })
}

func TestSession(t *testing.T) {
	for name, test := range map[string]struct {
		greeting, answer string
		class            func(error) bool
	}{
		"fine":           {greeting, fine, func(err error) bool { return err == nil }},
		"event before":   {greeting, stop + fine, func(err error) bool { return err == nil }},
		"refusal":        {greeting, taken, errdefs.IsFailedPrecondition},
		"ends":           {greeting, "end", errdefs.IsUnavailable},
		"no QEMU":        {`{"hello": 1}` + "\n", fine, errdefs.IsUnknown},
		"no JSON":        {"SSH-2.0\n", fine, func(err error) bool { return err != nil }},
		"says too much":  {greeting, strings.Repeat(stop, maxSession/len(stop)+1), errdefs.IsResourceExhausted},
		"one long value": {greeting, `"` + strings.Repeat("x", maxSession) + `"`, errdefs.IsResourceExhausted},
	} {
		t.Run(name, func(t *testing.T) {
			m := monitor(t, test.greeting, func(string, map[string]any) string { return test.answer })
			if err := m.ping(t.Context()); !test.class(err) {
				t.Errorf("error %v", err)
			}
		})
	}
}

// A QEMU that hangs keeps nobody.
func TestSessionHangs(t *testing.T) {
	for name, text := range map[string]string{"greeting": "", "command": greeting} {
		m := monitor(t, text, func(string, map[string]any) string { return "" })
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		first := make(chan error, 1)
		go func() { first <- m.ping(ctx) }()
		if err := m.ping(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: %v", name, err)
		}
		if err := <-first; !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: %v", name, err)
		}
		cancel()
	}
	m := newMachine(vmm.Config{Dir: t.TempDir()})
	if err := m.ping(t.Context()); !errdefs.IsUnavailable(err) {
		t.Errorf("without QEMU: %v", err)
	}
}

// What is half plugged is undone, and the first free slot is taken.
func TestPlug(t *testing.T) {
	for name, test := range map[string]struct {
		refused map[string]bool // slots
		class   func(error) bool
		calls   string
	}{
		"first":  {nil, func(err error) bool { return err == nil }, "add-fd blockdev-add remove-fd device_add:slot0"},
		"second": {map[string]bool{"slot0": true}, func(err error) bool { return err == nil }, "add-fd blockdev-add remove-fd device_add:slot0 device_add:slot1"},
		"none": {
			map[string]bool{"slot0": true, "slot1": true}, errdefs.IsResourceExhausted,
			"add-fd blockdev-add remove-fd device_add:slot0 device_add:slot1 device_del blockdev-del",
		},
	} {
		t.Run(name, func(t *testing.T) {
			var calls []string
			m := monitor(t, greeting, func(command string, args map[string]any) string {
				if command != "device_add" {
					calls = append(calls, command)
					if command == "device_del" {
						return missing
					}
					return fine
				}
				bus := args["bus"].(string)
				calls = append(calls, command+":"+bus)
				if test.refused[bus] {
					return taken
				}
				return fine
			})
			if err := m.PlugDisk(t.Context(), vmm.Disk{ID: "disk", Path: os.DevNull}); !test.class(err) {
				t.Errorf("error %v", err)
			}
			if got := strings.Join(calls, " "); got != test.calls {
				t.Errorf("calls %s", got)
			}
		})
	}
}

func TestUnplug(t *testing.T) {
	for name, test := range map[string]struct {
		answer string // to device_del
		class  func(error) bool
	}{
		"at once":      {deleted + fine, func(err error) bool { return err == nil }},
		"later":        {fine + stop + deleted, func(err error) bool { return err == nil }},
		"of another":   {fine + strings.ReplaceAll(deleted, "disk", "other"), func(err error) bool { return errors.Is(err, context.DeadlineExceeded) }},
		"is not there": {missing, errdefs.IsNotFound},
	} {
		t.Run(name, func(t *testing.T) {
			m := monitor(t, greeting, func(command string, _ map[string]any) string {
				if command == "device_del" {
					return test.answer
				}
				if test.answer == missing {
					return unknown
				}
				return fine
			})
			ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
			defer cancel()
			if err := m.UnplugDisk(ctx, "disk"); !test.class(err) {
				t.Errorf("error %v", err)
			}
		})
	}
}

// disks are what a QEMU has of one. Of what is done with its device it says
// nothing the first time if it is mute.
type disks struct {
	mu                 sync.Mutex
	node, device, mute bool
}

func (d *disks) has() (node, device bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.node, d.device
}

func (d *disks) answer(command string, _ map[string]any) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	mute := d.mute
	switch command {
	case "blockdev-add":
		if d.node {
			return taken
		}
		d.node = true
	case "device_add":
		d.device, d.mute = true, false
		if mute {
			return ""
		}
	case "device_del":
		if !d.device {
			return missing
		}
		d.device, d.mute = false, false
		if mute {
			return fine
		}
		return fine + deleted
	case "blockdev-del":
		if !d.node {
			return unknown
		}
		d.node = false
	}
	return fine
}

// Of a disk whose device went after nobody waited for that any more, the backend
// goes too: nobody could plug it again.
func TestUnplugHalf(t *testing.T) {
	d := &disks{node: true, device: true, mute: true}
	m := monitor(t, greeting, d.answer)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := m.UnplugDisk(ctx, "disk"); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
	if err := m.UnplugDisk(t.Context(), "disk"); err != nil {
		t.Error(err)
	}
	if err := m.UnplugDisk(t.Context(), "disk"); !errdefs.IsNotFound(err) {
		t.Errorf("once more: %v", err)
	}
	if err := m.PlugDisk(t.Context(), vmm.Disk{ID: "disk", Path: os.DevNull}); err != nil {
		t.Error(err)
	}
}

// The same of an interface.
func TestUnplugNICHalf(t *testing.T) {
	var backend atomic.Bool
	backend.Store(true)
	m := monitor(t, greeting, func(command string, _ map[string]any) string {
		if command == "netdev_del" && backend.Swap(false) {
			return fine
		}
		return missing
	})
	if err := m.UnplugNIC(t.Context(), "eth0"); err != nil || backend.Load() {
		t.Errorf("it is left: %t, %v", backend.Load(), err)
	}
	if err := m.UnplugNIC(t.Context(), "eth0"); !errdefs.IsNotFound(err) {
		t.Errorf("once more: %v", err)
	}
}

// A plug whose caller gives up is undone all the same; one that finds the disk
// plugged leaves it as it is.
func TestPlugUndone(t *testing.T) {
	d := &disks{mute: true}
	m := monitor(t, greeting, d.answer)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := m.PlugDisk(ctx, vmm.Disk{ID: "disk", Path: os.DevNull}); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
	if node, device := d.has(); node || device {
		t.Errorf("backend is left: %t, device: %t", node, device)
	}
	for _, fails := range []bool{false, true} {
		if err := m.PlugDisk(t.Context(), vmm.Disk{ID: "disk", Path: os.DevNull}); (err != nil) != fails {
			t.Error(err)
		}
		if node, device := d.has(); !node || !device {
			t.Errorf("backend: %t, device: %t", node, device)
		}
	}
}

// The same of an interface: its tap is in nobody's way.
func TestPlugNICUndone(t *testing.T) {
	tap, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer tap.Close()
	var backend atomic.Bool
	m := monitor(t, greeting, func(command string, _ map[string]any) string {
		switch command {
		case "netdev_add":
			if backend.Swap(true) {
				return unknown
			}
		case "netdev_del":
			backend.Store(false)
		case "device_add":
			return "" // it takes longer than its caller waits
		case "device_del":
			return missing
		}
		return fine
	})
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 1}
	if err := m.PlugNIC(ctx, vmm.NIC{ID: "eth0", MAC: mac, Tap: tap}); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
	if backend.Load() {
		t.Error("its backend is left")
	}
	backend.Store(true) // another's, that runs
	if err := m.PlugNIC(t.Context(), vmm.NIC{ID: "eth0", MAC: mac, Tap: tap}); err == nil || !backend.Load() {
		t.Errorf("a second one: %v, backend: %t", err, backend.Load())
	}
}

// A tap goes to QEMU with getfd.
func TestPlugNIC(t *testing.T) {
	tap, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer tap.Close()
	var calls []string
	m := monitor(t, greeting, func(command string, args map[string]any) string {
		calls = append(calls, fmt.Sprint(command, args["fdname"], args["fd"], args["mac"]))
		return fine
	})
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 1}
	if err := m.PlugNIC(t.Context(), vmm.NIC{ID: "eth0", MAC: mac, Tap: tap}); err != nil {
		t.Fatal(err)
	}
	want := "getfd tap-eth0 <nil> <nil>, netdev_add <nil> tap-eth0 <nil>, device_add <nil> <nil> 02:00:00:00:00:01"
	if got := strings.Join(calls, ", "); strings.ReplaceAll(got, " ", "") != strings.ReplaceAll(want, " ", "") {
		t.Errorf("calls %s", got)
	}
}

func TestLine(t *testing.T) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	c := vmm.Config{
		ID: "pod", Accel: vmm.TCG, Kernel: "/a,b", Initrd: "/i", Cmdline: "quiet", CPUs: 1, Memory: 128 << 20,
		Vsock:   vmm.Vsock{CID: 3, User: null},
		Shares:  []vmm.Share{{Tag: "kuasar", Socket: "fs"}},
		NICs:    []vmm.NIC{{ID: "eth0", MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}, MTU: 1400, Tap: null, More: []*os.File{null}}},
		Disks:   []vmm.Disk{{ID: "root", Path: "/with,comma", ReadOnly: true}},
		Slots:   2,
		Console: null,
	}
	l := newLine("/qemu", null)
	if err := l.machine(c); err != nil {
		t.Fatal(err)
	}
	got := strings.Join(l.args, " ")
	for _, want := range []string{
		"-chardev socket,id=qmp,fd=3,server=on,wait=off", "-accel tcg -cpu max,-mpx,-pku", "-smp 1 -m 128M",
		"memory-backend-memfd,id=mem,size=128M,share=on", "-kernel /a,b -initrd /i", "nolapic_timer quiet",
		"-add-fd set=1,fd=4", "-chardev socket,id=vsock,fd=5", "path=fs", "tag=kuasar",
		"-netdev tap,id=eth0,fds=6:7", "mac=02:00:00:00:00:01", "mq=on,vectors=6,host_mtu=1400",
		"node-name=root,read-only=on,file.driver=file,file.filename=/with,,comma", "serial=root",
		"id=slot1,chassis=2,slot=2", "-sandbox on,",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is not in %s", want, got)
		}
	}
	if len(l.files) != 5 {
		t.Errorf("%d files", len(l.files))
	}
	c.Accel, c.Vsock = vmm.KVM, vmm.Vsock{CID: 77, Vhost: null}
	l = newLine("/qemu", null)
	if err := l.machine(c); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"-accel kvm -cpu host", "vhost-vsock-pci,guest-cid=77,vhostfd=5"} {
		if got := strings.Join(l.args, " "); !strings.Contains(got, want) || strings.Contains(got, "nolapic") {
			t.Errorf("%q is not in %s", want, got)
		}
	}
}

func TestCheck(t *testing.T) {
	d := Driver{}
	here := filepath.Join(t.TempDir(), "qemu")
	if err := os.WriteFile(here, nil, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := d.Check(t.Context(), vmm.Config{VMM: here, Accel: vmm.TCG}); err != nil {
		t.Error(err)
	}
	if err := d.Check(t.Context(), vmm.Config{VMM: here + "-not"}); !errdefs.IsUnavailable(err) {
		t.Errorf("without QEMU: %v", err)
	}
	if err := d.Check(t.Context(), vmm.Config{VMM: here, Machine: "vax"}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("another machine: %v", err)
	}
}
