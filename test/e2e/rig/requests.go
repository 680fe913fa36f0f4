package rig

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// auditPolicy keeps a line for each request that has been answered, without what was in it.
const auditPolicy = `apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived, ResponseStarted]
rules: [{level: Metadata}]
`

// auditFlags make the API server write down every request, for Requests.
func (c *Cluster) auditFlags() ([]string, error) {
	if !c.options.CountRequests {
		return nil, nil
	}
	policy := filepath.Join(c.options.Directory, "audit-policy.yaml")
	return []string{"--audit-policy-file", policy, "--audit-log-path", c.auditLog()}, os.WriteFile(policy, []byte(auditPolicy), 0o644)
}

func (c *Cluster) auditLog() string { return filepath.Join(c.options.Directory, "audit.log") }

// Request is one that the API server has answered.
type Request struct {
	Verb      string
	UserAgent string
	User      struct{ Username string }
	Object    struct{ Resource, Subresource, Namespace, Name string } `json:"objectRef"`
}

// Requests are those that have been answered since the beginning, without watches. The cluster must have been made to count them.
func (c *Cluster) Requests() ([]Request, error) {
	f, err := os.Open(c.auditLog())
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var all []Request
	lines := bufio.NewReader(f)
	for {
		line, err := lines.ReadString('\n')
		if err != nil {
			return all, nil // the last line may be half written
		}
		var r Request
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			return nil, fmt.Errorf("read %s: %w: %s", c.auditLog(), err, strings.TrimSpace(line))
		}
		if r.Verb != "watch" {
			all = append(all, r)
		}
	}
}
