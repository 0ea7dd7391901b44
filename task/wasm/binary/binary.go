// Package binary looks at modules without an engine: whether a file is one at
// all, what it needs and whether it can be started. So a container that cannot
// run is refused with a reason, the same for all engines, before anything is
// compiled.
//
// What it reads is the image's: all sizes are taken from it and none is
// believed.
package binary

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/containerd/errdefs"
)

// Info is what a module says of itself.
type Info struct {
	Component bool     // of the component model; nothing else is known of it
	Imports   []Import // what it needs
	Start     bool     // it has the function that makes it a program
}

// Import is one thing that a module needs.
type Import struct{ Module, Name string }

func (i Import) String() string { return i.Module + "." + i.Name }

// Sections and kinds of the binary format.
const (
	importSection = 2
	exportSection = 7

	function = 0
	table    = 1
	memory   = 2
	global   = 3
	tag      = 4
)

// maxSection bounds the sections that are read, in bytes. Those of large
// programs have some KB.
const maxSection = 1 << 20

// ErrNoModule says that a file is something else.
var ErrNoModule = fmt.Errorf("no WebAssembly module: %w", errdefs.ErrInvalidArgument)

// Inspect reads a file's sections. What is no module is ErrNoModule.
func Inspect(file *os.File) (Info, error) {
	stat, err := file.Stat()
	if err != nil {
		return Info{}, err
	}
	if !stat.Mode().IsRegular() {
		return Info{}, fmt.Errorf("it is a %s: %w", stat.Mode().Type(), ErrNoModule)
	}
	info, err := inspect(io.NewSectionReader(file, 0, stat.Size()))
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = fmt.Errorf("module is cut short: %w", errdefs.ErrInvalidArgument)
	}
	return info, err
}

func inspect(file *io.SectionReader) (Info, error) {
	component, err := header(file)
	info := Info{Component: component}
	if err != nil || component {
		return info, err
	}
	for {
		var id [1]byte
		if _, err := io.ReadFull(file, id[:]); err == io.EOF {
			return info, nil
		} else if err != nil {
			return info, err
		}
		size, err := number(byteReader{file})
		if err != nil {
			return info, err
		}
		if err := info.section(file, id[0], int64(size)); err != nil {
			return info, err
		}
	}
}

// header takes the first eight bytes and says what follows.
func header(file io.Reader) (component bool, err error) {
	var first [8]byte
	n, err := io.ReadFull(file, first[:])
	switch {
	case bytes.HasPrefix(first[:n], []byte("\x7fELF")), bytes.HasPrefix(first[:n], []byte("#!")):
		return false, fmt.Errorf("it is a program for Linux, to be run by another runtime handler: %w", ErrNoModule)
	case !bytes.HasPrefix(first[:n], []byte("\x00asm")):
		return false, ErrNoModule
	case err != nil:
		return false, err
	}
	switch version, layer := binary.LittleEndian.Uint16(first[4:]), binary.LittleEndian.Uint16(first[6:]); {
	case layer == 1:
		return true, nil
	case layer != 0 || version != 1:
		return false, fmt.Errorf("module has version %d of layer %d of the binary format, not 1 of 0: %w", version, layer, errdefs.ErrInvalidArgument)
	}
	return false, nil
}

// section reads one, or passes over it.
func (i *Info) section(file *io.SectionReader, id byte, size int64) error {
	at, err := file.Seek(0, io.SeekCurrent)
	if err != nil {
		return err
	}
	if size > file.Size()-at {
		return io.ErrUnexpectedEOF
	}
	if id != importSection && id != exportSection {
		_, err := file.Seek(size, io.SeekCurrent)
		return err
	}
	if size > maxSection {
		return fmt.Errorf("section %d of the module has %d bytes, more than %d: %w", id, size, maxSection, errdefs.ErrInvalidArgument)
	}
	content := make([]byte, size)
	if _, err := io.ReadFull(file, content); err != nil {
		return err
	}
	if id == importSection {
		return i.imports(bytes.NewReader(content))
	}
	return i.exports(bytes.NewReader(content))
}

func (i *Info) imports(r *bytes.Reader) error {
	count, err := number(r)
	for ; err == nil && count > 0; count-- {
		var one Import
		if one.Module, err = name(r); err != nil {
			break
		}
		if one.Name, err = name(r); err != nil {
			break
		}
		i.Imports = append(i.Imports, one)
		err = skipType(r)
	}
	return err
}

func (i *Info) exports(r *bytes.Reader) error {
	count, err := number(r)
	for ; err == nil && count > 0; count-- {
		var export string
		if export, err = name(r); err != nil {
			break
		}
		var kind byte
		if kind, err = r.ReadByte(); err != nil {
			break
		}
		if export == "_start" && kind == function {
			i.Start = true
		}
		_, err = number(r)
	}
	return err
}

// skipType passes over the type of an import.
func skipType(r *bytes.Reader) error {
	kind, err := r.ReadByte()
	if err != nil {
		return err
	}
	switch kind {
	case function:
		_, err = number(r)
	case table:
		if err = skipValue(r); err == nil {
			err = skipLimits(r)
		}
	case memory:
		err = skipLimits(r)
	case global:
		if err = skipValue(r); err == nil {
			_, err = r.ReadByte()
		}
	case tag:
		if _, err = r.ReadByte(); err == nil {
			_, err = number(r)
		}
	default:
		err = fmt.Errorf("module imports something of unknown kind %d: %w", kind, errdefs.ErrInvalidArgument)
	}
	return err
}

// skipValue passes over a value's type: a byte, and for typed references the
// type that they are of.
func skipValue(r *bytes.Reader) error {
	kind, err := r.ReadByte()
	if err == nil && (kind == 0x63 || kind == 0x64) {
		_, err = number(r)
	}
	return err
}

func skipLimits(r *bytes.Reader) error {
	flags, err := r.ReadByte()
	if err == nil {
		_, err = number(r)
	}
	if err == nil && flags&1 != 0 {
		_, err = number(r)
	}
	return err
}

func name(r *bytes.Reader) (string, error) {
	size, err := number(r)
	if err != nil {
		return "", err
	}
	if size > uint64(r.Len()) {
		return "", io.ErrUnexpectedEOF
	}
	text := make([]byte, size)
	_, err = io.ReadFull(r, text)
	return string(text), err
}

// number reads an integer of variable length. A byte of its end that is missing
// is an unexpected one.
func number(r io.ByteReader) (uint64, error) {
	n, err := binary.ReadUvarint(r)
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// byteReader reads a file's bytes one by one: few of them.
type byteReader struct{ io.Reader }

func (r byteReader) ReadByte() (byte, error) {
	var b [1]byte
	_, err := io.ReadFull(r, b[:])
	return b[0], err
}
