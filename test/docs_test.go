package test

import (
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// What a reference page lists must be what the code has: each page's first column against the code's own names.

func TestReferenceOfParametersIsComplete(t *testing.T) {
	source := mustRead(t, "../provisioner/parameters.go")
	keys := matches(source, `(?m)^\tkey[A-Za-z]+ += "([^"]+)"`)
	_, ignored, _ := strings.Cut(source, "var ignoredKeys = []string{")
	ignored, _, _ = strings.Cut(ignored, "\n}")
	same(t, "parameters.md", slices.Concat(keys, matches(ignored, `"([^"]+)"`)),
		slices.Concat(firstColumn(t, "parameters.md"), matches(afterLine(t, "parameters.md", "Accepted and without meaning"), "`([^`]+)`")))
}

func TestReferenceOfSnapshotParametersIsComplete(t *testing.T) {
	_, keys, _ := strings.Cut(mustRead(t, "../provisioner/snapshotclass.go"), "var snapshotParsers = ")
	keys, _, _ = strings.Cut(keys, "\n}")
	named := map[string]string{}
	for _, file := range []string{"parameters.go", "snapshotclass.go"} {
		text := mustRead(t, "../provisioner/"+file)
		values := matches(text, `(?m)^\tkey[A-Za-z]+ += "([^"]+)"`)
		for i, name := range matches(text, `(?m)^\t(key[A-Za-z]+) += "`) {
			named[name] = values[i]
		}
	}
	var known []string
	for _, name := range matches(keys, `(?m)^\t(key[A-Za-z]+):`) {
		known = append(known, named[name])
	}
	same(t, "snapshot-parameters.md", known, firstColumn(t, "snapshot-parameters.md"))
}

func TestReferenceOfMetricsIsComplete(t *testing.T) {
	var metrics []string
	for _, f := range mustParseTree(t) {
		if !f.test {
			metrics = append(metrics, matches(mustRead(t, filepath.Join("..", f.path)), `"(plinth_[a-z_]+)"`)...)
		}
	}
	same(t, "metrics.md", metrics, firstColumn(t, "metrics.md"))
}

func TestReferenceOfStatesIsComplete(t *testing.T) {
	source := mustRead(t, "../backingimage/api/v1alpha1/backingimage.go") + mustRead(t, "../backingimage/api/v1alpha1/volume.go")
	states := matches(source, `(?m)^\t(?:Copy|Volume)[A-Z][A-Za-z]+ +(?:CopyState|VolumeState) += "([^"]+)"`)
	reasons := slices.Concat(matches(mustRead(t, "../backingimage/disk/health.go"), `(?m)^\tProblem[A-Za-z]+ +Problem = "([^"]+)"`),
		matches(mustRead(t, "../backingimage/api/v1alpha1/conditions.go"), `(?m)^\tDisk[A-Za-z]+ += "([^"]+)"`))
	same(t, "states.md", slices.Concat(states, reasons), firstColumn(t, "states.md"))
}

func TestLinksBetweenPagesLead(t *testing.T) {
	pages := []string{"../README.md"}
	for _, pattern := range []string{"../docs/*.md", "../docs/*/*.md"} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		pages = append(pages, found...)
	}
	for _, page := range pages {
		for _, link := range matches(mustRead(t, page), `\]\(([^)#]+)`) {
			if strings.Contains(link, "://") {
				continue
			}
			if _, err := os.Stat(filepath.Join(filepath.Dir(page), link)); err != nil {
				t.Errorf("%s links to %s: %v", page, link, err)
			}
		}
	}
}

// firstColumn returns what stands in backquotes in the first column of a page's tables.
func firstColumn(tb testing.TB, page string) []string {
	tb.Helper()
	return matches(mustRead(tb, "../docs/reference/"+page), "(?m)^\\| `([^`]+)` \\|")
}

func afterLine(tb testing.TB, page, beginning string) string {
	tb.Helper()
	_, after, found := strings.Cut(mustRead(tb, "../docs/reference/"+page), "\n"+beginning)
	if !found {
		tb.Fatalf("%s has no line that begins with %q", page, beginning)
	}
	return after
}

func same(tb testing.TB, page string, code, documented []string) {
	tb.Helper()
	if len(code) == 0 {
		tb.Fatalf("found nothing in the code to compare %s with", page)
	}
	inCode, inPage := set(code), set(documented)
	for name := range inCode {
		if !inPage[name] {
			tb.Errorf("docs/reference/%s lacks %q", page, name)
		}
	}
	for name := range inPage {
		if !inCode[name] {
			tb.Errorf("docs/reference/%s has %q, which the code does not", page, name)
		}
	}
}

func set(names []string) map[string]bool {
	return maps.Collect(func(yield func(string, bool) bool) {
		for _, n := range names {
			if !yield(n, true) {
				return
			}
		}
	})
}

func matches(text, pattern string) []string {
	var found []string
	for _, m := range regexp.MustCompile(pattern).FindAllStringSubmatch(text, -1) {
		found = append(found, m[1])
	}
	return found
}

func mustRead(tb testing.TB, path string) string {
	tb.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		tb.Fatal(err)
	}
	return string(b)
}
