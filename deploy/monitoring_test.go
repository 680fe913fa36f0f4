package deploy_test

import (
	"encoding/json"
	"os"
	"regexp"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// TestMonitoringAsksForMetricsThatThereAre compares alerts and the dashboard with the reference, which another test compares with the code.
func TestMonitoringAsksForMetricsThatThereAre(t *testing.T) {
	page, err := os.ReadFile("../docs/reference/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	known := map[string]bool{}
	for _, m := range regexp.MustCompile("(?m)^\\| `(plinth_[a-z_]+)` \\| ([a-z]+)").FindAllStringSubmatch(string(page), -1) {
		known[m[1]] = true
		if m[2] == "histogram" {
			known[m[1]+"_bucket"], known[m[1]+"_count"], known[m[1]+"_sum"] = true, true, true
		}
	}
	for file, expressions := range map[string][]string{"prometheusrule.yaml": alerts(t), "dashboard.json": queries(t)} {
		for _, e := range expressions {
			for _, name := range regexp.MustCompile(`plinth_[a-z_]+`).FindAllString(e, -1) {
				if !known[name] {
					t.Errorf("%s asks for %s, which there is not, in %s", file, name, e)
				}
			}
		}
		if len(expressions) < 10 {
			t.Errorf("%s has %d expressions", file, len(expressions))
		}
	}
}

func TestAlertsSayWhatToDo(t *testing.T) {
	for _, r := range mustRules(t) {
		if r.Annotations["summary"] == "" || r.Annotations["description"] == "" || r.Labels["severity"] == "" {
			t.Errorf("alert %s lacks a summary, a description or a severity", r.Alert)
		}
	}
}

type rule struct {
	Alert, Expr         string
	Labels, Annotations map[string]string
}

func mustRules(t *testing.T) []rule {
	t.Helper()
	var file struct {
		Spec struct{ Groups []struct{ Rules []rule } }
	}
	text, err := os.ReadFile("monitoring/prometheusrule.yaml")
	if err == nil {
		err = yaml.Unmarshal(text, &file)
	}
	if err != nil || len(file.Spec.Groups) != 1 {
		t.Fatalf("%d groups, %v", len(file.Spec.Groups), err)
	}
	return file.Spec.Groups[0].Rules
}

func alerts(t *testing.T) (expressions []string) {
	t.Helper()
	for _, r := range mustRules(t) {
		expressions = append(expressions, r.Expr)
	}
	return expressions
}

func queries(t *testing.T) (expressions []string) {
	t.Helper()
	var dashboard struct {
		Panels []struct {
			Title, Description string
			Type               string
			Targets            []struct{ Expr string }
		}
	}
	text, err := os.ReadFile("monitoring/dashboard.json")
	if err == nil {
		err = json.Unmarshal(text, &dashboard)
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range dashboard.Panels {
		for _, target := range p.Targets {
			expressions = append(expressions, target.Expr)
		}
		if p.Type != "row" && strings.TrimSpace(p.Description) == "" {
			t.Errorf("panel %s has no description", p.Title)
		}
	}
	return expressions
}
