package wazero

import "testing"

func TestSplit(t *testing.T) {
	for address, want := range map[string]struct {
		host string
		port int
	}{
		"8080":           {"", 8080},
		":8080":          {"", 8080},
		"127.0.0.1:1":    {"127.0.0.1", 1},
		"[::1]:65535":    {"[::1]", 65535},
		"":               {},
		"0":              {},
		"65536":          {},
		"-1":             {},
		"http":           {},
		"127.0.0.1":      {},
		"a:b:c":          {},
		"127.0.0.1:http": {},
	} {
		host, port, err := split(address)
		if (err == nil) != (want.port != 0) || host != want.host && err == nil || port != want.port && err == nil {
			t.Errorf("%q: %q, %d, %v", address, host, port, err)
		}
	}
}
