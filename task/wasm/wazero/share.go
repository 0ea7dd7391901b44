package wazero

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"unsafe"

	"github.com/tetratelabs/wazero"
	"golang.org/x/sys/unix"
)

// wazero reads the machine code of a module from its cache into memory of each
// process's own, and has no way to have it mapped. The code does not depend on
// where it is; so an image of it, in a file of ours, is mapped in its place, and
// all processes of the module have one copy.

// image is the file with a module's machine code.
const image = "image"

// write writes the image of the only module that has been compiled.
func write(r wazero.Runtime, dir string) error {
	all := machineCode(r)
	if len(all) != 1 {
		return nil
	}
	return os.WriteFile(filepath.Join(dir, image), all[0], 0o600)
}

// share maps the image in place of a module's code. Where that cannot be, the
// process has a copy.
func share(r wazero.Runtime, dir string) error {
	f, err := os.Open(filepath.Join(dir, image))
	if err != nil {
		return nil // compiled by another release, or to no code
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return fmt.Errorf("open compiled module: %w", err)
	}
	var code []byte
	for _, c := range machineCode(r) {
		if int64(len(c)) != info.Size() {
			continue
		}
		if code != nil {
			return nil // which of them it is cannot be told
		}
		code = c
	}
	if code == nil {
		return nil
	}
	_, err = unix.MmapPtr(int(f.Fd()), 0, unsafe.Pointer(&code[0]), uintptr(len(code)), unix.PROT_READ|unix.PROT_EXEC, unix.MAP_PRIVATE|unix.MAP_FIXED)
	if err != nil && !errors.Is(err, unix.EPERM) { // as of a file system that is mounted noexec
		return fmt.Errorf("map compiled module: %w", err)
	}
	return nil
}

// mapped is a file's content, for the life of this process.
func mapped(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	return unix.Mmap(int(f.Fd()), 0, int(info.Size()), unix.PROT_READ, unix.MAP_PRIVATE)
}

// machineCode finds the code of all modules of a runtime, which is not exported
// by wazero. Another version may have it elsewhere: then there is none.
func machineCode(r wazero.Runtime) (all [][]byte) {
	defer func() {
		if recover() != nil {
			all = nil
		}
	}()
	engine := reflect.ValueOf(r).Elem().FieldByName("store").Elem().FieldByName("Engine").Elem().Elem()
	for modules := engine.FieldByName("compiledModules").MapRange(); modules.Next(); {
		compiled := modules.Value().Elem().FieldByName("compiledModule").Elem()
		code := compiled.FieldByName("executables").Elem().FieldByName("executable")
		if code.Len() > 0 {
			all = append(all, unsafe.Slice((*byte)(code.UnsafePointer()), code.Len()))
		}
	}
	return all
}
