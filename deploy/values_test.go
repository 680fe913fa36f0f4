package deploy_test

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write docs/reference/helm-values.md instead of comparing it")

const valuesPage = "../docs/reference/helm-values.md"

// TestReferenceOfValues keeps the page equal to what values.yaml says of itself. make generate writes it.
func TestReferenceOfValues(t *testing.T) {
	text, err := os.ReadFile("helm/plinth/values.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	b.WriteString("# Values of the Helm chart\n\n<!-- Written by make generate from deploy/helm/plinth/values.yaml. -->\n\n")
	b.WriteString("How to install with it is in [install it in Kubernetes](../how-to/install-kubernetes.md).\n\n| value | meaning | default |\n|---|---|---|\n")
	for _, v := range readValues(t, string(text)) {
		fmt.Fprintf(&b, "| `%s` | %s | %s |\n", v.path, v.meaning, v.initial)
	}
	if *update {
		if err := os.WriteFile(valuesPage, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if got, err := os.ReadFile(valuesPage); err != nil || string(got) != b.String() {
		t.Errorf("docs/reference/helm-values.md is out of date (%v): run make generate", err)
	}
}

// value is one that has a description.
type value struct{ path, meaning, initial string }

// readValues reads the keys that have a comment above them, and fails for a key that should have one: what holds a value and is not
// part of one that has. What is indented below a value is its default.
func readValues(t *testing.T, text string) []value {
	t.Helper()
	var values []value
	var path, comment []string
	within := -1 // the indent of the value whose default is read
	for line := range strings.Lines(text) {
		trimmed := strings.TrimSpace(line)
		indent := len(line) - len(strings.TrimLeft(line, " "))
		switch {
		case trimmed == "":
			comment = nil
		case strings.HasPrefix(trimmed, "#"):
			comment = append(comment, strings.TrimSpace(strings.TrimPrefix(trimmed, "#")))
		case within >= 0 && indent > within:
			values[len(values)-1].initial = appendDefault(values[len(values)-1].initial, trimmed)
		default:
			key, initial, _ := strings.Cut(trimmed, ":")
			path = append(path[:min(indent/2, len(path))], key)
			within = -1
			switch initial = strings.TrimSpace(initial); {
			case len(comment) > 0:
				values = append(values, value{strings.Join(path, "."), strings.Join(comment, " "), inCode(initial)})
				within, comment = indent, nil
			case initial != "":
				t.Errorf("value %s has no description", strings.Join(path, "."))
			}
		}
	}
	return values
}

func inCode(s string) string {
	if s == "" {
		return ""
	}
	return "`" + s + "`"
}

func appendDefault(initial, line string) string {
	if initial == "" {
		return inCode(line)
	}
	return initial + ", " + inCode(line)
}
