package critest

import (
	"slices"
	"strings"
	"testing"
)

func table(first, second Result) Table {
	return Table{
		Handlers: []string{"stock", "ours"},
		Results:  []Results{{"Container case": first}, {"Container case": second}},
	}
}

func TestDifferences(t *testing.T) {
	passed, failed, skipped := Result{State: "passed"}, Result{State: "failed", Message: "because\nof"}, Result{State: "skipped"}
	known := Exclusions{"ours": {"Container case": "a cause"}}
	for _, test := range []struct {
		name          string
		first, second Result
		excluded      Exclusions
		want          []string
	}{
		{"both fail, one excluded", failed, failed, known, []string{"stock: failed: Container case: because"}},
		{"both pass", passed, passed, nil, nil},
		{"ours fails", passed, failed, nil, []string{"ours: failed: Container case: because"}},
		{"ours fails, excluded", passed, failed, known, nil},
		{"ours skips", passed, skipped, nil, []string{"ours: skipped: Container case: "}},
		{"ours is absent", passed, Result{}, nil, []string{"ours: absent: Container case: "}},
		{"stock fails", failed, passed, nil, []string{"stock: failed: Container case: because"}},
		{"both skip", skipped, skipped, nil, nil},
		{"stock skips, ours fails", skipped, failed, nil, []string{"ours: failed: Container case: because"}},
		{"passes, excluded", passed, passed, known, []string{"ours: Container case: excluded, but it passes"}},
		{"no such case", passed, passed, Exclusions{"ours": {"gone": ""}}, []string{"ours: gone: excluded, but there is no such case"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := table(test.first, test.second).Differences(test.excluded); !slices.Equal(got, test.want) {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}

func TestWrite(t *testing.T) {
	var out strings.Builder
	if err := table(Result{State: "passed"}, Result{State: "failed", Message: "because"}).Write(&out, nil); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"| Container | 1 passed | 0 passed, **1 failed** |",
		"| **all** | 1 passed | 0 passed, **1 failed** |",
		"## Failed: because\n\n- Container case (ours)\n",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is not in\n%s", want, out.String())
		}
	}
}
