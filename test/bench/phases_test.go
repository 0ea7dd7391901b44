package main

import (
	"encoding/xml"
	"errors"
	"io"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/containerd-kuasar/containerd-kuasar/ctl"
)

func span(id, parent, name string, begin, end int, ours bool) ctl.Span {
	at := func(ms int) time.Time { return time.Unix(1e9, 0).Add(time.Duration(ms) * time.Millisecond) }
	return ctl.Span{ID: id, Parent: parent, Name: name, Begin: at(begin), End: at(end), Ours: ours}
}

func TestRows(t *testing.T) {
	got := rows([]ctl.Call{
		{Spans: []ctl.Span{span("d", "", "v1.Runtime/StartContainer", 120, 150, false), span("e", "d", "task.Start", 125, 150, true)}},
		{Spans: []ctl.Span{
			span("a", "client", "v1.Runtime/RunPodSandbox", 0, 100, false), span("b", "a", "containerd.inner", 1, 99, false),
			span("c", "b", "sandbox.Start", 10, 90, true), span("f", "c", "vmm.boot", 20, 80, true), span("g", "a", network, 2, 9, false),
		}},
	})
	want := []phase{
		{"RunPodSandbox", 0, 0, 100}, {"sandbox.Start", 1, 10, 80}, {"vmm.boot", 2, 20, 60}, {network, 1, 2, 7},
		{"StartContainer", 0, 120, 30}, {"task.Start", 1, 125, 25},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

// The picture of the same starts is the same, and within its frame.
func TestCascade(t *testing.T) {
	all := []waterfall{
		{"one & two", []phase{{"RunPodSandbox", 0, 0, 1900}, {"vmm.boot", 1, 100, 1700}, {"agent.kernel", 2, 300, 0.1}}},
		{"empty", nil},
	}
	picture := cascade(all)
	if string(picture) != string(cascade(all)) {
		t.Error("it differs")
	}
	for d := xml.NewDecoder(strings.NewReader(string(picture))); ; {
		_, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, part := range []string{"one &amp; two: 1900 ms", ">vmm.boot<", "#d9730d", ">1800 ms<"} {
		if !strings.Contains(string(picture), part) {
			t.Errorf("no %q in %s", part, picture)
		}
	}
	if step := scaleStep(1900); step != 200 {
		t.Errorf("marks every %v", step)
	}
}
