package wasm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/containerd-kuasar/containerd-kuasar/task/wasm/cache"
	"github.com/containerd-kuasar/containerd-kuasar/task/wasm/cell"
	"github.com/containerd-kuasar/containerd-kuasar/task/wasm/engine"
	"github.com/containerd-kuasar/containerd-kuasar/task/wasm/runner"
)

const (
	// codeDir is where a cell has a compiled module, or makes it.
	codeDir = "/code"

	// source is the module in it while it is compiled.
	source = "module.wasm"

	// compiling is how long a compiler may take: WasmEdge's takes half a
	// minute for some MB, on a slow machine.
	compiling = 5 * time.Minute
)

// compilers is how many run at a time.
var compilers = max(runtime.NumCPU(), 2)

// compileLimits keep a module from taking more of the node than a compiler
// needs: that of WasmEdge takes a GB for some MB.
var compileLimits = map[int]uint64{
	unix.RLIMIT_DATA:  4 << 30,
	unix.RLIMIT_CPU:   uint64(compiling/time.Second) * 2,
	unix.RLIMIT_FSIZE: 2 << 30,
	unix.RLIMIT_CORE:  0,
}

// cache returns the one of a directory: those who use it share compilations.
func (r *Runtime) cache(o engine.Options) *cache.Cache {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.caches[o.Cache]
	if c == nil {
		c = cache.New(o.Cache, o.CacheSize)
		r.caches[o.Cache] = c
	}
	return c
}

// compile has the engine's compiler fill a directory, in a process that sees
// nothing else and may do nothing else: what it reads is the image's. It must
// be what has the digest: others will be given the result for it.
func (r *Runtime) compile(spec *specs.Spec, process *specs.Process, o engine.Options, digest, dir string) error {
	r.compilers <- struct{}{}
	defer func() { <-r.compilers }()
	module := filepath.Join(dir, source)
	copied, err := copyModule(spec, process, module)
	if err != nil {
		return err
	}
	if copied != digest {
		return fmt.Errorf("module was changed while it was read: start the container again: %w", errdefs.ErrUnavailable)
	}
	info, err := os.Stat(module)
	if err != nil {
		return err
	}
	compiler, err := r.compiler(o, info.Size())
	if err != nil {
		return err
	}
	place, err := r.place()
	if err != nil {
		return err
	}
	c := cell.Cell{Dir: place, Offline: true, Binds: append(compiler.binds, cell.Bind{Source: dir, Target: codeDir, Writable: true})}
	if err := r.run(&c, compiler); err != nil {
		return fmt.Errorf("compile with %s: %w", o.Engine, err)
	}
	if !compiler.keep {
		if err := os.Remove(module); err != nil {
			return err
		}
	}
	return share(dir)
}

// share lets the users of containers read what a compiler has made: a cell
// shows it to those that have the module. It refuses links, which would lead
// the worker elsewhere.
func share(dir string) error {
	return filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case e.IsDir():
			return os.Chmod(path, 0o755)
		case e.Type().IsRegular():
			return os.Chmod(path, 0o644)
		}
		return fmt.Errorf("the compiler has made %s, a %s: %w", path, e.Type(), errdefs.ErrDataLoss)
	})
}

// run runs a program of a cell to its end. What it says on stderr is the error.
func (r *Runtime) run(c *cell.Cell, program command) error {
	end := r.cfg.Begin()
	defer end()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	in, out, err := os.Pipe()
	if err != nil {
		return err
	}
	defer in.Close()
	pid, err := c.Start(program.path, program.args, []*os.File{null, out, out}, syscall.SysProcAttr{})
	out.Close()
	if err != nil {
		return err
	}
	p, err := os.FindProcess(pid) // nobody reaps it before end
	if err != nil {
		return err
	}
	restrained := restrain(pid)
	if restrained != nil {
		_ = p.Kill()
	}
	ctx, cancel := context.WithTimeout(context.Background(), compiling)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = p.Kill() })
	defer stop()
	said, _ := io.ReadAll(io.LimitReader(in, 64<<10))
	_, _ = io.Copy(io.Discard, in) // it must not wait for us
	state, err := p.Wait()
	switch {
	case err != nil:
		return err
	case ctx.Err() != nil:
		return fmt.Errorf("it took more than %v: %w", compiling, errdefs.ErrUnavailable)
	case state.Success():
		return nil
	case restrained != nil:
		return restrained
	}
	text := program.brief(string(bytes.TrimSpace(said)))
	if text == "" {
		text = state.String()
	}
	return fmt.Errorf("%.*s: %w", runner.MaxStatus, strings.ToValidUTF8(text, "?"), errdefs.ErrInvalidArgument)
}

// place makes the directory that cells are mounted on: one for all, since none
// sees another's.
func place(dir string) (string, error) {
	path := filepath.Join(dir, "cell")
	return path, os.MkdirAll(path, 0o700)
}

// restrain gives a compiler its limits, and has the OOM killer take it before
// all others. It may have ended by now.
func restrain(pid int) error {
	for kind, limit := range compileLimits {
		if err := unix.Prlimit(pid, kind, &unix.Rlimit{Cur: limit, Max: limit}, nil); err != nil && err != unix.ESRCH {
			return fmt.Errorf("limit compiler: %w", err)
		}
	}
	const first = 1000 // OOM_SCORE_ADJ_MAX of the kernel
	return disfavour(pid, first)
}

// disfavour tells the OOM killer what it may take of a child that nobody waits
// for yet. See proc_pid_oom_score_adj(5).
func disfavour(pid, score int) error {
	err := os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid), []byte(strconv.Itoa(score)), 0)
	if err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("set score for the OOM killer: %w", err)
	}
	return nil
}

// install copies this program to where a cell can have it from: what it runs
// from has no name, and what has its name may be another release by now.
func install(dir string) (string, error) {
	path := filepath.Join(dir, "kuasar-task")
	from, err := os.Open("/proc/self/exe")
	if err != nil {
		return "", fmt.Errorf("install runner: %w", err)
	}
	defer from.Close()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("install runner: %w", err)
	}
	to, err := os.OpenFile(path+".new", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o755)
	if err == nil {
		_, err = io.Copy(to, from)
		err = errors.Join(err, to.Close())
	}
	if err == nil {
		err = os.Rename(path+".new", path)
	}
	if err != nil {
		return "", fmt.Errorf("install runner: %w", err)
	}
	return path, nil
}
