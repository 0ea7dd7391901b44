package vmm

import (
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
)

func TestParse(t *testing.T) {
	with := func(change func(*Options)) Options {
		o := Defaults()
		change(&o)
		return o
	}
	allowed := `allow = ["memory", "vcpus"]`
	for name, test := range map[string]struct {
		toml        string
		annotations map[string]string
		want        Options
		says        string // of the error
	}{
		"nothing": {want: Defaults()},
		"all": {
			toml: `hypervisor = "other"
path = "/q"
machine = "m"
accel = "tcg"
kernel = "/k"
initrd = "/i"
kernel_params = "a b"
vcpus = 2
memory = 512
overhead = 100
max_vcpus = 4
max_memory = 1024
hotplug_slots = 0
free_page_reporting = true
virtiofsd = "/v"
vsock = "user"
vsock_path = "/d"
boot_timeout = 5
debug = true
templates = true
pool = 2
allow = ["memory"]`,
			want: Options{
				Hypervisor: "other", Path: "/q", Machine: "m", Accel: TCG, Kernel: "/k", Initrd: "/i", KernelParams: "a b",
				VCPUs: 2, Memory: 512 << 20, Overhead: 100 << 20, MaxVCPUs: 4, MaxMemory: 1 << 30, FreePageReporting: true, Virtiofsd: "/v", Vsock: UserVsock, VsockPath: "/d",
				BootTimeout: 5 * time.Second, Debug: true, Templates: true, Pool: 2, Allow: []string{"memory"},
			},
		},
		"annotations": {
			toml:        allowed,
			annotations: map[string]string{Annotation + "memory": "1024", "other": "x"},
			want:        with(func(o *Options) { o.Memory, o.Allow = 1<<30, []string{"memory", "vcpus"} }),
		},
		"unknown key":       {toml: "no_such = 1", says: "no_such"},
		"other case":        {toml: "Memory = 512", says: "Memory"},
		"bad syntax":        {toml: "memory", says: "options"},
		"wrong type":        {toml: `memory = "much"`, says: "memory = much"},
		"too little memory": {toml: "memory = 32", says: "from 64"},
		"no processor":      {toml: "vcpus = 0", says: "vcpus = 0"},
		"accel":             {toml: `accel = "warp"`, says: "auto, kvm, tcg"},
		"relative path":     {toml: `kernel = "k"`, says: "absolute"},
		"pool of many":      {toml: "templates = true\npool = 17", says: "from 0 to 16"},
		"pool of nothing":   {toml: "pool = 1", says: "set templates = true"},
		"allow a pool":      {toml: `allow = ["pool"]`, says: "pool"},
		"debug":             {toml: "debug = 1", says: "true or false"},
		"two lines":         {toml: `kernel_params = "a\nb"`, says: "one line"},
		"allow unknown":     {toml: `allow = ["speed"]`, says: "speed"},
		"allow a path":      {toml: `allow = ["kernel"]`, says: "kernel"},
		"allow itself":      {toml: `allow = ["allow"]`, says: "allow"},
		"annotation of a boolean": {
			toml:        `allow = ["debug"]`,
			annotations: map[string]string{Annotation + "debug": "true"},
			want:        with(func(o *Options) { o.Debug, o.Allow = true, []string{"debug"} }),
		},
		"annotation not let":    {annotations: map[string]string{Annotation + "memory": "512"}, says: "may set none"},
		"annotation unknown":    {toml: allowed, annotations: map[string]string{Annotation + "speed": "1"}, says: "speed"},
		"annotation no number":  {toml: allowed, annotations: map[string]string{Annotation + "memory": "512M"}, says: `"512M"`},
		"annotation too little": {toml: allowed, annotations: map[string]string{Annotation + "memory": "1"}, says: "from 64"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := parse([]byte(test.toml), test.annotations, Defaults())
			switch {
			case test.says != "" && (!errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), test.says)):
				t.Errorf("error %v", err)
			case test.says == "" && err != nil:
				t.Error(err)
			case test.says == "" && !reflect.DeepEqual(got, test.want):
				t.Errorf("got  %+v\nwant %+v", got, test.want)
			}
		})
	}
}

func TestSize(t *testing.T) {
	o := Defaults()
	for name, test := range map[string]struct {
		limits
		cpus   uint32
		memory uint64
		fails  bool
	}{
		"none":         {cpus: 1, memory: 256 << 20},
		"memory":       {limits: limits{memory: 64 << 20}, cpus: 1, memory: 160 << 20},
		"odd memory":   {limits: limits{memory: 1}, cpus: 1, memory: 98 << 20},
		"processors":   {limits: limits{quota: 150_000, period: 100_000}, cpus: 2, memory: 256 << 20},
		"a tenth":      {limits: limits{quota: 10_000, period: 100_000}, cpus: 1, memory: 256 << 20},
		"too many":     {limits: limits{quota: 1 << 40, period: 1000}, cpus: maxCPUs, memory: 256 << 20},
		"no quota":     {limits: limits{quota: -1, period: 100_000}, cpus: 1, memory: 256 << 20},
		"too much":     {limits: limits{memory: 1 << 50}, fails: true},
		"more than is": {limits: limits{memory: 1<<63 - 1}, fails: true},
	} {
		cpus, memory, err := o.size(test.limits)
		if cpus != test.cpus || memory != test.memory || (err != nil) != test.fails {
			t.Errorf("%s: %d processors, %d bytes, %v", name, cpus, memory, err)
		}
	}
}
