package main_test

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"plinth.dev/plinth/provisioner/backup/object/cloudtest"
	"plinth.dev/plinth/test/plinthtest"
)

// TestTargetsInTheCloud adds targets whose drivers are in a program of their own, which every process finds beside it: the controller and the
// command line.
func TestTargetsInTheCloud(t *testing.T) {
	account := cloudtest.MustServiceAccount(t)
	server := cloudtest.MustGoogle(t, backupBucket, account)
	s := plinthtest.Start(t, plinthtest.Options{Args: []string{"--allow-source-cidr", "127.0.0.1/32"}})
	dir := t.TempDir()
	mustBe(t, os.WriteFile(filepath.Join(dir, "key.json"), []byte(account.JSON), 0o600))
	mustBe(t, os.WriteFile(filepath.Join(dir, "endpoint"), []byte("http://"+server), 0o600))
	s.MustCLI("secret", "create", "google", "--from-file", "GOOGLE_APPLICATION_CREDENTIALS="+filepath.Join(dir, "key.json"), "--from-file", "GOOGLE_STORAGE_ENDPOINT="+filepath.Join(dir, "endpoint"))
	s.MustCLI("target", "add", "cloud", "--url", "gs://"+backupBucket+"/cluster", "--secret", "google")
	if said := s.MustCLI("target", "ls"); !strings.Contains(said, "can be read and written") {
		t.Errorf("the target is listed as %s", said)
	}
	s.MustCLI("backup", "ls", "--target", "cloud")
	for url, says := range map[string]string{"gs://another-bucket/x": "no bucket another-bucket", "azblob://backups/x": "AZBLOB_ACCOUNT_NAME"} {
		name := strings.Split(url, ":")[0] + "-wrong"
		if r := s.CLI("target", "add", name, "--url", url, "--secret", "google"); r.Code != 5 || !strings.Contains(r.Stderr, says) {
			t.Errorf("%s: exit code %d, %s", url, r.Code, r.Stderr)
		}
	}
	alone := filepath.Join(dir, "plinth")
	program, err := os.Open(s.Binary)
	mustBe(t, err)
	defer program.Close()
	copied, err := os.OpenFile(alone, os.O_CREATE|os.O_WRONLY, 0o700)
	mustBe(t, err)
	_, err = io.Copy(copied, program)
	mustBe(t, err)
	mustBe(t, copied.Close())
	t.Setenv("PATH", dir)
	s.Binary = alone
	if r := s.CLI("backup", "ls", "--target", "cloud"); r.Code != 9 || !strings.Contains(r.Stderr, "plinth-buckets is neither beside "+alone) {
		t.Errorf("without the program: exit code %d, %s", r.Code, r.Stderr)
	}
}
