package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const hidden = "s3cr3t-value"

// mustSecret runs a secret command that must end with code, and returns all that it printed.
func mustSecret(t *testing.T, code int, args ...string) string {
	t.Helper()
	var stdout, stderr bytes.Buffer
	if got := run(t.Context(), &stdout, &stderr, append([]string{"secret"}, args...)...); got != code {
		t.Errorf("%v: exit code %d, not %d: %s", args, got, code, &stderr)
	}
	if printed := stdout.String() + stderr.String(); strings.Contains(printed, hidden) {
		t.Errorf("%v tells the secret: %s", args, printed)
	}
	return stdout.String() + stderr.String()
}

func TestSecretsAreMadeListedAndRemovedWithoutBeingShown(t *testing.T) {
	dir, file := filepath.Join(t.TempDir(), "secrets"), filepath.Join(t.TempDir(), "token")
	mustWrite(t, file, hidden+"\n")
	env := file + ".env"
	mustWrite(t, env, "# who\nusername=me\npassword="+hidden+"=\n")
	mustSecret(t, 0, "create", "mirror", "--from-file", "token="+file, "--secrets-dir", dir)
	mustSecret(t, 0, "create", "mirror", "--from-env-file", env, "--secrets-dir", dir, "-n", "apps")
	if got := mustSecret(t, 0, "ls", "--secrets-dir", dir); !strings.Contains(got, "apps        mirror   password,username") || !strings.Contains(got, "default     mirror   token") {
		t.Errorf("listed as\n%s", got)
	}
	if got := mustSecret(t, 0, "ls", "-o", "name", "--secrets-dir", dir); got != "apps/mirror\ndefault/mirror\n" {
		t.Errorf("listed as\n%s", got)
	}
	mustSecret(t, 0, "rm", "mirror", "--secrets-dir", dir)
	if got := mustSecret(t, 3, "rm", "mirror", "--secrets-dir", dir); !strings.Contains(got, "default/mirror") {
		t.Errorf("removed twice: %s", got)
	}
}

func TestSecretCommandsRefuse(t *testing.T) {
	dir, bad := filepath.Join(t.TempDir(), "secrets"), filepath.Join(t.TempDir(), "bad")
	mustWrite(t, bad, hidden+"\n"+hidden)
	open := filepath.Join(t.TempDir(), "open")
	if err := os.Mkdir(open, 0o755); err != nil {
		t.Fatal(err)
	}
	for says, args := range map[string][]string{
		"--from-file is missing": {"create", "a", "--secrets-dir", dir},
		"KEY=FILE":               {"create", "a", "--from-file", hidden, "--secrets-dir", dir},
		"no such file":           {"create", "a", "--from-file", "token=" + hidden, "--secrets-dir", dir},
		"several lines":          {"create", "a", "--from-file", "token=" + bad, "--secrets-dir", dir},
		"given twice":            {"create", "a", "--from-file", "token=" + bad, "--from-file", "token=" + bad, "--secrets-dir", dir},
		`"passwort"`:             {"create", "a", "--from-file", "passwort=" + bad, "--secrets-dir", dir},
		"line 1":                 {"create", "a", "--from-env-file", bad, "--secrets-dir", dir},
		"name of a secret":       {"create", "../a", "--from-file", "token=" + bad, "--secrets-dir", dir},
		"chmod 700":              {"ls", "--secrets-dir", open},
	} {
		code := 2
		if strings.HasPrefix(says, "chmod") {
			code = 5
		}
		if got := mustSecret(t, code, args...); !strings.Contains(got, says) {
			t.Errorf("%v: %s, want %q", args, got, says)
		}
	}
}
