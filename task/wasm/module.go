package wasm

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/cyphar/filepath-securejoin/pathrs-lite"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/containerd-kuasar/containerd-kuasar/task/wasm/binary"
	"github.com/containerd-kuasar/containerd-kuasar/task/wasm/cache"
	"github.com/containerd-kuasar/containerd-kuasar/task/wasm/cell"
	"github.com/containerd-kuasar/containerd-kuasar/task/wasm/engine"
)

// code returns the directory with a process's module, compiled.
func (r *Runtime) code(ctx context.Context, spec *specs.Spec, process *specs.Process, o engine.Options) (string, error) {
	path := process.Args[0]
	file, err := open(spec, process)
	if err != nil {
		return "", err
	}
	defer file.Close()
	info, err := binary.Inspect(file)
	if err == nil {
		err = check(info, o.Engine)
	}
	if err != nil {
		return "", fmt.Errorf("%s: %w", path, err)
	}
	digest, err := cache.Digest(file)
	if err != nil {
		return "", fmt.Errorf("%s: %w", path, err)
	}
	version, err := r.version(o)
	if err != nil {
		return "", err
	}
	dir, err := r.cache(o).Get(ctx, cache.Key{Module: digest, Engine: o.Engine, Version: version}, func(dir string) error {
		return r.compile(spec, process, o, digest, dir)
	})
	if err != nil {
		return "", fmt.Errorf("%s: %w", path, err)
	}
	return dir, nil
}

// check refuses what no module of the engine's can be.
func check(info binary.Info, name string) error {
	switch {
	case info.Component && name != engine.Wasmtime:
		return fmt.Errorf("it is a component, which only %s runs: %w", engine.Wasmtime, errdefs.ErrInvalidArgument)
	case info.Component:
		return nil
	case !info.Start:
		return fmt.Errorf("module has no function _start: it is no program: %w", errdefs.ErrInvalidArgument)
	}
	var missing []string
	for _, i := range info.Imports {
		if i.Module != "wasi_snapshot_preview1" {
			missing = append(missing, i.String())
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("module needs %.200s, which %s has not: %w", strings.Join(missing, ", "), name, errdefs.ErrInvalidArgument)
	}
	return nil
}

// open opens a process's module as its container sees it, whatever links the
// image has.
func open(spec *specs.Spec, process *specs.Process) (*os.File, error) {
	var missing error
	for _, path := range candidates(process) {
		file, err := openAt(spec, path)
		if err == nil {
			return file, nil
		}
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
			err = fmt.Errorf("module %s of the container: %w", path, errdefs.ErrNotFound)
			missing = cmp.Or(missing, err)
			continue
		}
		return nil, fmt.Errorf("module %s of the container: %w", path, err)
	}
	return nil, missing
}

// candidates are the paths that a process's module may have: a name is one in
// the working directory, as images of modules have it, or in PATH, as for any
// program.
func candidates(p *specs.Process) []string {
	name := p.Args[0]
	if filepath.IsAbs(name) {
		return []string{filepath.Clean(name)}
	}
	paths := []string{filepath.Join("/", p.Cwd, name)}
	if strings.Contains(name, "/") {
		return paths
	}
	for _, env := range p.Env {
		if dirs, ok := strings.CutPrefix(env, "PATH="); ok {
			for _, dir := range filepath.SplitList(dirs) {
				paths = append(paths, filepath.Join("/", dir, name))
			}
		}
	}
	return paths
}

func openAt(spec *specs.Spec, path string) (*os.File, error) {
	root, rest := locate(spec, path)
	handle, err := pathrs.OpenInRoot(root, rest)
	if err != nil {
		return nil, err
	}
	defer handle.Close()
	return pathrs.Reopen(handle, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC)
}

// locate finds the directory of this host that a path is in, and the rest of
// the path: a module may be in a volume.
func locate(spec *specs.Spec, path string) (root, rest string) {
	root, rest = spec.Root.Path, path
	for _, m := range slices.Backward(spec.Mounts) {
		if m.Type == "tmpfs" || cell.Passed(m) {
			continue
		}
		target := filepath.Clean(m.Destination)
		if below, ok := strings.CutPrefix(path, target+"/"); ok {
			return m.Source, below
		}
		if path == target {
			return filepath.Dir(m.Source), filepath.Base(m.Source)
		}
	}
	return root, rest
}

// copyModule puts a process's module into a directory. Others may write to it
// meanwhile: the digest is that of the copy.
func copyModule(spec *specs.Spec, process *specs.Process, to string) (digest string, err error) {
	from, err := open(spec, process)
	if err != nil {
		return "", err
	}
	defer from.Close()
	f, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return "", err
	}
	digest, err = cache.Digest(io.TeeReader(from, f))
	return digest, errors.Join(err, f.Close())
}
