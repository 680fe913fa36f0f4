package main_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"plinth.dev/plinth/test/plinthtest"
)

// policy is as much of one as the test looks at.
type policy struct {
	Spec struct {
		Target, Schedule    string
		Volumes             []string
		VolumeSelector      *struct{ MatchLabels map[string]string }
		KeepLast, KeepDaily int
		Suspend             bool
	}
	Status struct{ LastTime, NextTime string }
}

// TestPolicies has volumes backed up by a schedule, as a person does.
func TestPolicies(t *testing.T) {
	b := &backer{Standalone: plinthtest.Start(t, plinthtest.Options{})}
	u := &user{Standalone: b.Standalone}
	b.MustCLI("target", "add", "nas", "--url", "file://"+t.TempDir())
	b.MustCLI("volume", "create", "db", "--size", "8Mi", "--block")
	if r := b.CLI("policy", "ls"); r.Code != 0 || !strings.Contains(r.Stderr, "plinth policy create") {
		t.Errorf("with none: %+v", r)
	}
	if out := b.MustCLI("policy", "create", "often", "--schedule", "@every 1s", "--volume", "db", "--keep-last", "2"); !strings.Contains(out, "volumes db to target nas, @every 1s; keeps 2 last") {
		t.Errorf("got %s", out)
	}
	made := map[string]bool{}
	b.eventually(t, "the policy's backups", func() (string, bool) {
		for name := range strings.FieldsSeq(b.MustCLI("backup", "ls", "-o", "name")) {
			made[name] = true
		}
		shown := b.MustCLI("policy", "show", "often")
		return shown, len(made) > 3 && strings.Count(shown, "often-db-") >= 2 && strings.Contains(shown, "Ready:")
	})
	b.MustCLI("policy", "set", "often", "--suspend", "--keep-last", "1", "--keep-daily", "1")
	b.eventually(t, "what is kept", func() (string, bool) {
		names := b.MustCLI("backup", "ls", "-o", "name")
		return names, len(strings.Fields(names)) == 1
	})
	b.MustCLI("policy", "set", "often", "--selector", "app=db", "--schedule", "CRON_TZ=Europe/Berlin 0 2 * * *")
	var p policy
	mustBe(t, json.Unmarshal([]byte(b.MustCLI("policy", "show", "often", "-o", "json")), &p))
	if got := fmt.Sprint(p.Spec); p.Spec.Target != "nas" || p.Spec.KeepLast != 1 || p.Spec.KeepDaily != 1 || !p.Spec.Suspend || p.Spec.Volumes != nil || p.Spec.VolumeSelector.MatchLabels["app"] != "db" || p.Status.LastTime == "" {
		t.Errorf("it is %s, %+v", got, p.Status)
	}
	if out := b.MustCLI("policy", "ls"); !strings.Contains(out, "with app=db") || !strings.Contains(out, "1 last, 1 daily") || !strings.Contains(out, "suspended") {
		t.Errorf("the list is %s", out)
	}
	for _, mistake := range []struct {
		code int
		says string
		args []string
	}{
		{2, `"schedule" not set`, []string{"create", "p", "--volume", "db"}},
		{2, "--volume, --selector or --all", []string{"create", "p", "--schedule", "@daily"}},
		{2, "--volume, --selector or --all", []string{"create", "p", "--schedule", "@daily", "--all", "--volume", "db"}},
		{2, `"at night" is no schedule`, []string{"create", "p", "--schedule", "at night", "--all"}},
		{2, "--keep-daily", []string{"create", "p", "--schedule", "@daily", "--all", "--keep-daily", "-1"}},
		{2, "--selector", []string{"create", "p", "--schedule", "@daily", "--selector", "a=b=c"}},
		{3, `no volume "web"`, []string{"create", "p", "--schedule", "@daily", "--volume", "db,web"}},
		{3, "tape", []string{"create", "p", "--schedule", "@daily", "--all", "--target", "tape"}},
		{3, "none", []string{"set", "none", "--suspend"}},
		{2, "say what to change", []string{"set", "often"}},
	} {
		u.refused(t, mistake.code, []string{mistake.says}, append([]string{"policy"}, mistake.args...)...)
	}
	b.MustCLI("policy", "rm", "often")
	if names := b.MustCLI("backup", "ls", "-o", "name"); len(strings.Fields(names)) != 1 {
		t.Errorf("the backups are %s", names)
	}
	u.refused(t, 3, []string{"often"}, "policy", "rm", "often")
}
