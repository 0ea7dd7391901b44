package stream

import (
	"net"
	"os"
	"sync"
)

// input is the guest's end of a process's stdin.
type input struct {
	file *os.File // write end of the FIFO, non-blocking

	mu   sync.Mutex
	conn net.Conn // that has the stream now
}

// attach writes what comes to the FIFO. At the end stdin ends, as far as this
// goes: the process's IO has a write end, too. Where the process has gone, or
// has closed its stdin, the host is told by the end of the connection.
func (i *input) attach(c net.Conn, _ uint64) {
	i.mu.Lock()
	if i.conn != nil {
		i.conn.Close()
	}
	i.conn = c
	i.mu.Unlock()
	err := writeAnswer(c, answerYes, 0)
	if err == nil {
		err = readFrames(c, func(b []byte) error {
			_, err := i.file.Write(b)
			return err
		})
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.conn != c {
		return
	}
	i.conn = nil
	if err == nil {
		i.file.Close()
	}
}

func (i *input) close() error {
	i.mu.Lock()
	if i.conn != nil {
		i.conn.Close()
	}
	i.mu.Unlock()
	i.file.Close() // it may be already
	return nil
}
