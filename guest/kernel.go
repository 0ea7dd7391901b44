package guest

import (
	"bytes"
	"compress/gzip"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
)

// Offsets of the setup header of a bzImage; see the kernel's
// Documentation/arch/x86/boot.rst.
const (
	setupSectors  = 0x1f1
	headerMagic   = 0x202 // "HdrS"
	bootProtocol  = 0x206
	payloadOffset = 0x248 // since protocol 2.08
	payloadLength = 0x24c
	headerEnd     = 0x250

	sector = 512
)

// maxKernel bounds what a kernel is unpacked to, in bytes: a distribution's has
// 50 MB.
const maxKernel = 512 << 20

// unpack takes the ELF image out of a bzImage. A VMM starts it directly (PVH),
// without firmware code that unpacks it: a quarter of a second less in an
// emulated machine.
func unpack(image []byte) ([]byte, error) {
	if len(image) < headerEnd || string(image[headerMagic:headerMagic+4]) != "HdrS" {
		return nil, errors.New("it is no bzImage")
	}
	if v := binary.LittleEndian.Uint16(image[bootProtocol:]); v < 0x208 {
		return nil, fmt.Errorf("its boot protocol %x is too old: 208 is needed", v)
	}
	sectors := int64(image[setupSectors])
	if sectors == 0 {
		sectors = 4
	}
	start := (sectors+1)*sector + int64(binary.LittleEndian.Uint32(image[payloadOffset:]))
	end := start + int64(binary.LittleEndian.Uint32(image[payloadLength:]))
	if end > int64(len(image)) || end-start < sizeLength {
		return nil, fmt.Errorf("its payload, from %d to %d, is not in its %d bytes", start, end, len(image))
	}
	kernel, err := decompress(image[start:end])
	if err != nil {
		return nil, fmt.Errorf("unpack it: %w", err)
	}
	f, err := elf.NewFile(bytes.NewReader(kernel))
	if err != nil {
		return nil, fmt.Errorf("what is in it: %w", err)
	}
	defer f.Close()
	if !bootable(f) {
		return nil, errors.New("it is built without CONFIG_PVH: a VMM cannot start it directly")
	}
	return kernel, nil
}

// sizeLength is of the size of the unpacked kernel that its build appends to the
// payload, in bytes; gzip has the same at its own end.
const sizeLength = 4

func decompress(payload []byte) ([]byte, error) {
	size := int64(binary.LittleEndian.Uint32(payload[len(payload)-sizeLength:]))
	if size > maxKernel {
		return nil, fmt.Errorf("it has %d bytes: more than any kernel", size)
	}
	body := bytes.NewReader(payload[:len(payload)-sizeLength])
	var r io.Reader
	var err error
	switch {
	case bytes.HasPrefix(payload, []byte{0x1f, 0x8b}):
		r, err = gzip.NewReader(bytes.NewReader(payload))
	case bytes.HasPrefix(payload, []byte{0x02, 0x21, 0x4c, 0x18}): // the legacy frame
		r = lz4.NewReader(body)
	case bytes.HasPrefix(payload, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		var d *zstd.Decoder
		if d, err = zstd.NewReader(body); err == nil {
			defer d.Close()
			r = d
		}
	default:
		return nil, fmt.Errorf("compression %x is not supported: gzip, lz4 and zstd are", payload[:4])
	}
	if err != nil {
		return nil, err
	}
	kernel := make([]byte, size)
	if _, err := io.ReadFull(r, kernel); err != nil {
		return nil, err
	}
	return kernel, nil
}

// bootable looks for the note that has the address where a VMM starts the
// kernel: XEN_ELFNOTE_PHYS32_ENTRY.
func bootable(f *elf.File) bool {
	const entry, align = 18, 4
	for _, p := range f.Progs {
		if p.Type != elf.PT_NOTE {
			continue
		}
		b, err := io.ReadAll(p.Open())
		for err == nil && len(b) >= 12 {
			name, desc := f.ByteOrder.Uint32(b), f.ByteOrder.Uint32(b[4:])
			kind := f.ByteOrder.Uint32(b[8:])
			if kind == entry && name == 4 && len(b) >= 16 && string(b[12:15]) == "Xen" {
				return true
			}
			next := 12 + (uint64(name)+align-1)/align*align + (uint64(desc)+align-1)/align*align
			if next > uint64(len(b)) {
				break
			}
			b = b[next:]
		}
	}
	return false
}
