// Package images builds the images that the tests, the demo and the
// benchmarks run: from Debian's static busybox and a few programs of our own,
// under the names that critest asks for.
package images

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	imagespec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/containerd-kuasar/containerd-kuasar/test/registry"
)

// Names of the images that tests use directly.
const (
	Busybox = e2e + "busybox:1.29-2" // a shell with the usual tools; runs as root
	Web     = e2e + "nginx:1.14-2"   // a web server on port 80
	User    = cri + "test-image-predefined-group:latest"

	// Pause is the stock runtime's sandbox image. It is an image of its own
	// that no test removes: critest removes its pause:3.9 by image id.
	Pause = "registry.k8s.io/pause:3.10.2"
)

// Pinned is the digest of the image that critest pulls by digest. Its build
// here is made to ask for this one instead of a published image.
const Pinned = "sha256:bcfb01b19f1399d34ba49d5efbb8f41b603494154806bf8e7d2fa96da608c252"

const (
	e2e = "registry.k8s.io/e2e-test-images/"
	cri = "gcr.io/k8s-staging-cri-tools/"
)

// Add builds all images into r. busybox is the path of a static busybox; dir
// has the built programs of this package (web, privs, pause) and, in shell/,
// the files of a shell that looks its commands up in PATH.
func Add(r *registry.Registry, busybox, dir string) error {
	b := builder{registry: r}
	b.base = b.pack(append(b.busybox(busybox), b.tree(filepath.Join(dir, "shell"))...)...)
	web := b.pack(b.program(dir, "web", "usr/sbin/nginx", 0o755), file{path: "usr/sbin/httpd", mode: 0o755, link: "usr/sbin/nginx"})
	pause := b.pack(b.program(dir, "pause", "pause", 0o755))

	b.add(Busybox, command("sh"), b.base)
	b.add(Web, command("/usr/sbin/nginx"), b.base, web)
	b.add(e2e+"httpd:2.4.39-4", command("/usr/sbin/httpd"), b.base, web)
	b.add(cri+"hostnet-nginx-amd64:latest", command("/usr/sbin/nginx", "-listen", ":12003"), b.base, web)
	b.add(e2e+"nonewprivs:1.3", command("/privs"), b.pack(b.program(dir, "privs", "privs", 0o4755)))
	b.add(Pause, command("/pause"), pause)
	for _, name := range []string{"registry.k8s.io/pause:3.9", "k8s.gcr.io/pause:3.9"} {
		b.add(name, labelled("critest", "pause", command("/pause")), pause)
	}
	b.users()
	b.references()
	b.modules(dir)
	return b.err
}

// builder keeps the first error, so that a list of images reads as a list.
type builder struct {
	registry *registry.Registry
	base     registry.Layer
	err      error
}

// users adds the images whose user critest looks at.
func (b *builder) users() {
	for name, user := range map[string]string{
		"test-image-user-uid":            "1002",
		"test-image-user-username":       "www-data",
		"test-image-user-uid-group":      "1003:users",
		"test-image-user-username-group": "www-data:www-data",
		"test-image-predefined-group":    "1000",
	} {
		config := command("sh")
		config.Config.User = user
		b.add(cri+name+":latest", config, b.base)
	}
}

// references adds the images that critest pulls by all kinds of names: equal
// images under several tags, and different ones.
func (b *builder) references() {
	for _, name := range []string{
		"test-image-latest:latest", "test-image-tag:test", "test-image-tag:all",
		"test-image-1:latest", "test-image-2:latest", "test-image-3:latest",
		"test-image-digest:latest",
	} {
		b.add(cri+name, command("/true"), b.named(name))
	}
	for _, tag := range []string{"1", "2", "3"} {
		b.add(cri+"test-image-tags:"+tag, command("/true"), b.named("test-image-tags"))
	}
}

// trueProgram is the smallest static program there is for amd64: an ELF
// header, a program header and exit(0).
//
// The images of references() need a program only so that a container of them
// can start, and their digests must not depend on a compiler's version.
const trueProgram = "\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00" +
	"\x02\x00\x3e\x00\x01\x00\x00\x00\x78\x00\x40\x00\x00\x00\x00\x00" +
	"\x40\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00" +
	"\x00\x00\x00\x00\x40\x00\x38\x00\x01\x00\x00\x00\x00\x00\x00\x00" +
	"\x01\x00\x00\x00\x05\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00" +
	"\x00\x00\x40\x00\x00\x00\x00\x00\x00\x00\x40\x00\x00\x00\x00\x00" +
	"\x81\x00\x00\x00\x00\x00\x00\x00\x81\x00\x00\x00\x00\x00\x00\x00" +
	"\x00\x10\x00\x00\x00\x00\x00\x00" +
	"\x31\xff" + // xor edi, edi
	"\xb8\x3c\x00\x00\x00" + // mov eax, 60 (exit)
	"\x0f\x05" // syscall

// named is a layer that differs from all others by its name.
func (b *builder) named(name string) registry.Layer {
	return b.pack(
		file{path: "true", mode: 0o755, data: []byte(trueProgram)},
		file{path: "name", data: []byte(name + "\n")},
	)
}

// busybox is a small root file system. The applets are hard links: masking
// one must not mask all, as it would through a symbolic link.
func (b *builder) busybox(path string) []file {
	program, err := os.ReadFile(path)
	if err != nil && b.err == nil {
		b.err = fmt.Errorf("read busybox: %w (install the package busybox-static)", err)
	}
	files := []file{
		{path: "bin/"}, {path: "dev/"}, {path: "etc/"}, {path: "home/"}, {path: "proc/"}, {path: "root/", mode: 0o700},
		{path: "sbin/"}, {path: "sys/"}, {path: "tmp/", mode: 0o1777}, {path: "usr/"}, {path: "usr/bin/"}, {path: "usr/sbin/"},
		{path: "var/"}, {path: "var/run/"}, {path: "var/tmp/", mode: 0o1777}, {path: "run/", mode: 0o755},
		{path: "etc/passwd", data: []byte(passwd)}, {path: "etc/group", data: []byte(group)},
		{path: "bin/busybox", mode: 0o755, data: program},
		{path: "bin/ipcs", mode: 0o755, data: []byte(ipcs)},
		{path: "bin/pgrep", mode: 0o755, data: []byte(pgrep)},
	}
	for _, applet := range strings.Fields(applets) {
		files = append(files, file{path: "bin/" + applet, mode: 0o755, link: "bin/busybox"})
	}
	return files
}

// tree is a directory with all below it, in the order of names.
func (b *builder) tree(dir string) []file {
	var files []file
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		name := strings.TrimPrefix(path, dir+"/")
		if entry.IsDir() {
			files = append(files, file{path: name + "/"})
			return nil
		}
		data, err := os.ReadFile(path)
		files = append(files, file{path: name, mode: 0o755, data: data})
		return err
	})
	if err != nil && b.err == nil {
		b.err = fmt.Errorf("read the images' shell: %w (run hack/install)", err)
	}
	return files
}

func (b *builder) program(dir, name, target string, mode int64) file {
	data, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil && b.err == nil {
		b.err = fmt.Errorf("read image program: %w (run make build)", err)
	}
	return file{path: target, mode: mode, data: data}
}

func (b *builder) pack(files ...file) registry.Layer {
	packed, err := layer(files)
	if err != nil && b.err == nil {
		b.err = err
	}
	return packed
}

func (b *builder) add(name string, config imagespec.Image, layers ...registry.Layer) {
	if b.err == nil {
		_, b.err = b.registry.Add(name, config, layers...)
	}
}

func command(argv ...string) imagespec.Image {
	return imagespec.Image{
		Created:  &epoch,
		Platform: imagespec.Platform{OS: "linux", Architecture: "amd64"},
		Config: imagespec.ImageConfig{
			Env: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
			Cmd: argv,
		},
	}
}

func labelled(key, value string, config imagespec.Image) imagespec.Image {
	config.Config.Labels = map[string]string{key: value}
	return config
}

const passwd = `root:x:0:0:root:/root:/bin/sh
default-user:x:1000:1000::/home:/bin/sh
www-data:x:33:33:www-data:/var/www:/bin/false
nobody:x:65534:65534:nobody:/home:/bin/false
`

const group = `root:x:0:
users:x:100:
www-data:x:33:
default-user:x:1000:
group-defined-in-image:x:50000:default-user
nogroup:x:65534:
`

// These are what Debian's busybox has no applet for.
const ipcs = `#!/bin/sh
exec cat /proc/sysvipc/shm
`

const pgrep = `#!/bin/sh
found=1
for dir in /proc/[0-9]*; do
	if [ "$(cat "$dir/comm" 2>/dev/null)" = "$1" ]; then
		echo "${dir#/proc/}"
		found=0
	fi
done
exit $found
`

const applets = `cat chmod chown cp cut date dd df dmesg echo env expr false find
free grep head hostname id ip ifconfig kill ln ls md5sum mkdir mknod mount mv nc netstat
nslookup pidof ping printf ps pwd readlink rm rmdir route sed seq setsid sha256sum
sleep sort stat stty sync tail tar tee test timeout top touch tr true tty umount uname
unshare vi wc wget which whoami xargs yes brctl`
