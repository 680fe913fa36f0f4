package main

import (
	"os"
	"path/filepath"
	"regexp"
	"testing"
)

// commandLines find the arguments with which files of deploy run plinth: the personality, and what has its flags.
var commandLines = map[string]*regexp.Regexp{
	".yaml":    regexp.MustCompile(`(?s)args:\s+- (controller|node)\n(.*?)\n\s+(?:env|ports):`),
	".hcl":     regexp.MustCompile(`(?s)args = \[\s*"(standalone|node)",(.*?)\n\s+\]`),
	".service": regexp.MustCompile(`ExecStart=/usr/local/bin/plinth (standalone)(.*)`),
}

var longFlag = regexp.MustCompile(`[\s"]--([a-z-]+)`)

// TestArgumentsInDeploy holds what deploy runs against the flags that there are.
func TestArgumentsInDeploy(t *testing.T) {
	files := []string{"helm/plinth/templates/controller.yaml", "helm/plinth/templates/node.yaml", "kubernetes/controller.yaml", "kubernetes/node.yaml",
		"nomad/plinth-node.nomad.hcl", "nomad/plinth-standalone.nomad.hcl", "systemd/plinth-standalone.service"}
	for _, file := range files {
		text, err := os.ReadFile(filepath.Join("../../deploy", file))
		if err != nil {
			t.Fatal(err)
		}
		line := commandLines[filepath.Ext(file)].FindSubmatch(text)
		if line == nil {
			t.Errorf("%s does not run plinth", file)
			continue
		}
		cmd, _, err := newRootCommand(&cli{}).Find([]string{string(line[1])})
		if err != nil {
			t.Fatal(err)
		}
		flags := longFlag.FindAllSubmatch(line[2], -1)
		for _, m := range flags {
			if name := string(m[1]); cmd.Flags().Lookup(name) == nil && cmd.InheritedFlags().Lookup(name) == nil {
				t.Errorf("%s: plinth %s has no flag --%s", file, line[1], name)
			}
		}
		if len(flags) == 0 {
			t.Errorf("%s: plinth %s has no flags", file, line[1])
		}
	}
}
