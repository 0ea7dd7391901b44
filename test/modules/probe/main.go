// probe is what the Wasm tests run: each of its commands shows one thing that a
// module gets from its engine. It is built for WASI preview 1, and for Linux to
// compare with.
package main

import (
	"bufio"
	"crypto/rand"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"
)

var commands = map[string]func(args []string) error{
	"args":   func(args []string) error { return show(strings.Join(args, "\n")) },
	"env":    func([]string) error { return show(strings.Join(os.Environ(), "\n")) },
	"cwd":    cwd,
	"cat":    cat,
	"upper":  upper,
	"talk":   talk,
	"write":  write,
	"ls":     ls,
	"exit":   exit,
	"stderr": func(args []string) error { _, err := fmt.Fprintln(os.Stderr, strings.Join(args, " ")); return err },
	"clock":  clock,
	"random": random,
	"alloc":  alloc,
	"sleep":  sleep,
	"loop":   loop,
	"panic":  func([]string) error { panic("as asked") },
	"repeat": repeat,
	"serve":  serve,
}

func main() {
	name := "args"
	if len(os.Args) > 1 {
		name = os.Args[1]
	}
	command, ok := commands[name]
	if !ok {
		fmt.Fprintf(os.Stderr, "probe: unknown command %q\n", name)
		os.Exit(2)
	}
	if err := command(os.Args[min(2, len(os.Args)):]); err != nil {
		fmt.Fprintf(os.Stderr, "probe: %v\n", err)
		os.Exit(1)
	}
}

func show(text string) error {
	_, err := fmt.Println(text)
	return err
}

func cwd([]string) error {
	dir, err := os.Getwd()
	if err != nil {
		return err
	}
	return show(dir)
}

// cat copies files, or standard input, to standard output.
func cat(paths []string) error {
	if len(paths) == 0 {
		_, err := io.Copy(os.Stdout, os.Stdin)
		return err
	}
	for _, path := range paths {
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if _, err := os.Stdout.Write(data); err != nil {
			return err
		}
	}
	return nil
}

// upper answers each line as it comes.
func upper([]string) error {
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		if err := show(strings.ToUpper(lines.Text())); err != nil {
			return err
		}
	}
	return lines.Err()
}

// talk says one, waits for a line, says two and exits with a status.
func talk(args []string) error {
	if err := show("one"); err != nil {
		return err
	}
	if _, err := bufio.NewReader(os.Stdin).ReadString('\n'); err != nil {
		return err
	}
	if err := show("two"); err != nil {
		return err
	}
	return exit(args)
}

func write(args []string) error {
	return os.WriteFile(args[0], []byte(strings.Join(args[1:], " ")), 0o644)
}

func ls(args []string) error {
	return filepath.WalkDir(args[0], func(path string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return show(path)
	})
}

func exit(args []string) error {
	code, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	os.Exit(code)
	return nil
}

// clock shows the wall clock in seconds and that the monotonic one goes on.
func clock([]string) error {
	start := time.Now()
	<-time.After(10 * time.Millisecond)
	if passed := time.Since(start); passed < 10*time.Millisecond {
		return fmt.Errorf("the monotonic clock went on by %v in 10 ms", passed)
	}
	return show(strconv.FormatInt(start.Unix(), 10))
}

func random([]string) error {
	var b [16]byte
	if _, err := rand.Read(b[:]); err != nil {
		return err
	}
	return show(fmt.Sprintf("%x", b))
}

// alloc uses as many MiB of memory.
func alloc(args []string) error {
	count, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	var kept [][]byte
	for range count {
		block := make([]byte, 1<<20)
		for i := range block {
			block[i] = byte(i)
		}
		kept = append(kept, block)
	}
	err = show(fmt.Sprintf("%d MiB", len(kept)))
	runtime.KeepAlive(kept)
	return err
}

// sleep says that it runs, and waits.
func sleep([]string) error {
	if err := show("sleeping"); err != nil {
		return err
	}
	<-time.After(100000 * time.Second)
	return nil
}

// loop says that it runs, and uses the processor for ever.
func loop([]string) error {
	if err := show("looping"); err != nil {
		return err
	}
	for i := 0; ; i++ {
		sink = i
	}
}

var sink int

// repeat writes as many numbered lines.
func repeat(args []string) error {
	count, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	w := bufio.NewWriter(os.Stdout)
	for i := range count {
		fmt.Fprintf(w, "line %d\n", i)
	}
	return w.Flush()
}
