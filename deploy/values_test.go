package deploy_test

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

var update = flag.Bool("update", false, "write what is made of values.yaml instead of comparing it")

// What is made of values.yaml: its page of the reference, and the schema by which Helm refuses a value that there is not.
const (
	valuesPage   = "../docs/reference/helm-values.md"
	valuesSchema = "helm/plinth/values.schema.json"
)

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
	sameOrUpdate(t, valuesPage, b.String())
}

// sameOrUpdate compares a file with what it shall be, or writes it.
func sameOrUpdate(t *testing.T, path, want string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if got, err := os.ReadFile(path); err != nil || string(got) != want {
		t.Errorf("%s is out of date (%v): run make generate", path, err)
	}
}

// TestSchemaOfValues keeps the schema equal to what the defaults say: their types, and that there are no others.
func TestSchemaOfValues(t *testing.T) {
	text, err := os.ReadFile("helm/plinth/values.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var values map[string]any
	if err := yaml.UnmarshalStrict(text, &values); err != nil {
		t.Fatal(err)
	}
	schema := schemaOf("", values)
	schema["$schema"] = "http://json-schema.org/draft-07/schema#"
	schema["properties"].(map[string]any)["global"] = map[string]any{"type": "object"} // which every chart may be given
	out, err := json.MarshalIndent(schema, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	sameOrUpdate(t, valuesSchema, string(out)+"\n")
}

// schemaOf is the schema of a value by its default. What is empty, and resources, are as Kubernetes has them.
func schemaOf(key string, initial any) map[string]any {
	switch v := initial.(type) {
	case map[string]any:
		if len(v) == 0 || key == "resources" {
			return map[string]any{"type": "object"}
		}
		properties := map[string]any{}
		for name, of := range v {
			properties[name] = schemaOf(name, of)
		}
		return map[string]any{"type": "object", "properties": properties, "additionalProperties": false}
	case []any:
		return map[string]any{"type": "array"}
	case bool:
		return map[string]any{"type": "boolean"}
	case float64:
		return map[string]any{"type": "integer"}
	case string:
		if strings.HasSuffix(v, "%") {
			return map[string]any{"type": []string{"string", "integer"}}
		}
	}
	return map[string]any{"type": "string"}
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
