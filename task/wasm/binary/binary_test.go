package binary

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const (
	magic = "\x00asm\x01\x00\x00\x00"
	start = "\x07\x0a\x01\x06_start\x00\x00" // exports a function
)

func inspectText(t *testing.T, content string) (Info, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "module")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	return Inspect(file)
}

// section is an import section of one import.
func section(kind string) string {
	content := "\x01\x03env\x01f" + kind
	return fmt.Sprintf("\x02%c%s", len(content), content)
}

func TestInspect(t *testing.T) {
	for name, test := range map[string]struct {
		content string
		imports string
		start   bool
	}{
		"empty module":           {magic, "", false},
		"program":                {magic + start, "", true},
		"unknown section":        {magic + "\x00\x03abc" + start, "", true},
		"global named as such":   {magic + "\x07\x0a\x01\x06_start\x03\x00", "", false},
		"function":               {magic + section("\x00\x05") + start, "env.f", true},
		"table":                  {magic + section("\x01\x70\x00\x01") + start, "env.f", true},
		"table with a maximum":   {magic + section("\x01\x70\x01\x01\x80\x01") + start, "env.f", true},
		"table of typed":         {magic + section("\x01\x64\x05\x00\x01") + start, "env.f", true},
		"memory with a maximum":  {magic + section("\x02\x01\x01\x02") + start, "env.f", true},
		"shared memory of 64":    {magic + section("\x02\x07\x80\x80\x01\x80\x80\x02") + start, "env.f", true},
		"global":                 {magic + section("\x03\x7f\x00") + start, "env.f", true},
		"tag":                    {magic + section("\x04\x00\x05") + start, "env.f", true},
		"two of the same module": {magic + "\x02\x11\x02\x03env\x01f\x00\x00\x03env\x01g\x00\x00", "env.f env.g", false},
	} {
		t.Run(name, func(t *testing.T) {
			info, err := inspectText(t, test.content)
			if err != nil {
				t.Fatal(err)
			}
			if got := strings.Trim(fmt.Sprint(info.Imports), "[]"); got != test.imports || info.Start != test.start || info.Component {
				t.Errorf("got %+v", info)
			}
		})
	}
	if info, err := inspectText(t, "\x00asm\x0d\x00\x01\x00anything"); err != nil || !info.Component {
		t.Errorf("a component: %+v, %v", info, err)
	}
}

func TestInspectRefuses(t *testing.T) {
	for name, test := range map[string]struct {
		content, want string
		module        bool
	}{
		"empty file":      {"", "no WebAssembly module", false},
		"text":            {"(module)", "no WebAssembly module", false},
		"program":         {"\x7fELF\x02\x01\x01", "for Linux", false},
		"script":          {"#!/bin/sh\n", "for Linux", false},
		"old version":     {"\x00asm\x0d\x00\x00\x00", "version 13", true},
		"header alone":    {"\x00asm\x01", "cut short", true},
		"half a section":  {magic + "\x01\x7fabc", "cut short", true},
		"no size":         {magic + "\x01", "cut short", true},
		"half an import":  {magic + "\x02\x03\x01\x03e", "cut short", true},
		"count too large": {magic + "\x02\x01\x7f", "cut short", true},
		"name too long":   {magic + "\x02\x06\x01\xff\xff\xff\xff\x0f", "cut short", true},
		"large section":   {magic + "\x02\x81\x80\x40" + strings.Repeat("x", maxSection+1), "more than", true},
		"strange import":  {magic + section("\x09"), "unknown kind 9", true},
	} {
		t.Run(name, func(t *testing.T) {
			info, err := inspectText(t, test.content)
			if err == nil || !strings.Contains(err.Error(), test.want) || errors.Is(err, ErrNoModule) == test.module {
				t.Errorf("got %+v, %v", info, err)
			}
		})
	}
	file, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if _, err := Inspect(file); !errors.Is(err, ErrNoModule) {
		t.Errorf("a directory: %v", err)
	}
}

func FuzzInspect(f *testing.F) {
	f.Add([]byte(magic + section("\x01\x70\x01\x01\x80\x01") + start))
	f.Add([]byte(magic + "\x00\x03abc" + start))
	f.Fuzz(func(t *testing.T, content []byte) {
		info, err := inspect(io.NewSectionReader(bytes.NewReader(content), 0, int64(len(content))))
		if err == nil && len(info.Imports) > len(content) {
			t.Errorf("%d imports in %d bytes", len(info.Imports), len(content))
		}
	})
}
