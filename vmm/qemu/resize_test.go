package qemu

import (
	"testing"
)

// A call that was cut off leaves a backend without its device: the next one is
// not in its way.
func TestResizeMemoryHalf(t *testing.T) {
	backed, plugged := true, false
	m := monitor(t, greeting, func(command string, _ map[string]any) string {
		switch command {
		case "query-memory-size-summary":
			if plugged {
				return `{"return": {"base-memory": 134217728, "plugged-memory": 134217728}}` + "\r\n"
			}
			return `{"return": {"base-memory": 134217728, "plugged-memory": 0}}` + "\r\n"
		case "qom-get":
			return missing
		case "object-del":
			if !backed {
				return `{"error": {"class": "GenericError", "desc": "object 'mem-more' not found"}}` + "\r\n"
			}
			backed = false
		case "object-add":
			if backed {
				return `{"error": {"class": "GenericError", "desc": "attempt to add duplicate property 'mem-more'"}}` + "\r\n"
			}
			backed = true
		case "device_add":
			plugged = true
			return fine + `{"event": "MEMORY_DEVICE_SIZE_CHANGE", "data": {"id": "memory", "size": 134217728}, "timestamp": {"seconds": 1, "microseconds": 2}}` + "\r\n"
		}
		return fine
	})
	m.most = size{cpus: 1, memory: 512 << 20}
	if has, err := m.ResizeMemory(t.Context(), 256<<20); err != nil || has != 256<<20 {
		t.Errorf("it has %d bytes, %v", has, err)
	}
	if !backed || !plugged {
		t.Errorf("backend: %t, device: %t", backed, plugged)
	}
}
