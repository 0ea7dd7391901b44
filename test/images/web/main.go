// web is the web server of the test images. Its name decides what it stands
// for: as "nginx" or "httpd" it titles itself as they do, writes their pid
// file and logs a line that names it. It serves one page on every path, and
// echoes what is posted to it.
package main

import (
	"flag"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
)

// titled marks the process that already has its title as argv[0].
const titled = "WEB_TITLED"

func main() {
	addr := flag.String("listen", ":80", "address to serve on")
	flag.Parse()
	if err := run(*addr); err != nil {
		log.Fatal(err)
	}
}

func run(addr string) error {
	name := filepath.Base(os.Args[0])
	if os.Getenv(titled) == "" {
		return retitle(name)
	}
	name = os.Getenv(titled)
	if err := os.WriteFile("/var/run/"+name+".pid", fmt.Appendln(nil, os.Getpid()), 0o644); err != nil {
		return fmt.Errorf("write pid file: %w", err)
	}
	end := make(chan os.Signal, 1)
	signal.Notify(end, syscall.SIGTERM, syscall.SIGQUIT, syscall.SIGINT)
	go func() {
		<-end
		os.Exit(0)
	}()
	log.Printf("%s listens on %s", name, addr)
	return http.ListenAndServe(addr, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			_, _ = io.Copy(w, r.Body)
			return
		}
		_, _ = fmt.Fprintf(w, "Welcome to %s!\n", name)
	}))
}

// retitle starts the program again as "nginx: master process nginx": the
// title a process has is the arguments it was started with. The path, and
// with it the command name that pidof looks for, stays.
func retitle(name string) error {
	path, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find own path: %w", err)
	}
	argv := append([]string{name + ": master process " + name}, os.Args[1:]...)
	env := append(os.Environ(), titled+"="+name)
	return fmt.Errorf("start %s again: %w", path, syscall.Exec(path, argv, env))
}
