package cache

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// list is the file with an entry's checksums, a line a file. Its time is when
// the entry was last used.
const list = ".sum"

// castagnoli is the sum that processors have an instruction for. It finds
// damage, not malice.
var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// sum writes an entry's list.
func sum(dir string) error {
	sums, err := sums(dir)
	if err != nil {
		return err
	}
	if len(sums) == 0 {
		return errors.New("the compiler has written nothing")
	}
	return os.WriteFile(filepath.Join(dir, list), sums, 0o600)
}

// verify holds that an entry is what was once written.
func verify(dir string) error {
	want, err := os.ReadFile(filepath.Join(dir, list))
	if err != nil {
		return err
	}
	got, err := sums(dir)
	if err == nil && (len(want) == 0 || !bytes.Equal(got, want)) {
		err = fmt.Errorf("compiled module %s is damaged", dir)
	}
	return err
}

// look says which files an entry has, and when they were changed. The time of
// the list tells something else.
func look(dir string) (string, error) {
	var files strings.Builder
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		st := info.Sys().(*syscall.Stat_t)
		fmt.Fprintln(&files, path, st.Ino, st.Mode)
		if name := entry.Name(); !entry.IsDir() && name != list {
			fmt.Fprintln(&files, st.Size, st.Mtim, st.Ctim)
		} else if name == list {
			fmt.Fprintln(&files, st.Size)
		}
		return nil
	})
	return files.String(), err
}

// sums are the lines of the list, in the order of names.
func sums(dir string) ([]byte, error) {
	var lines bytes.Buffer
	err := fs.WalkDir(os.DirFS(dir), ".", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || path == list {
			return err
		}
		file, err := os.Open(filepath.Join(dir, path))
		if err != nil {
			return err
		}
		defer file.Close()
		crc := crc32.New(castagnoli)
		size, err := io.CopyBuffer(crc, readOnly{file}, make([]byte, 256<<10))
		fmt.Fprintf(&lines, "%08x %d %s\n", crc.Sum32(), size, path)
		return err
	})
	return lines.Bytes(), err
}

// readOnly hides what else a file can do, of which io.Copy would take a buffer
// of its own size.
type readOnly struct{ io.Reader }

// touch notes that an entry is used. If that fails it is an old one.
func touch(dir string) { _ = os.Chtimes(filepath.Join(dir, list), time.Time{}, time.Now()) }
