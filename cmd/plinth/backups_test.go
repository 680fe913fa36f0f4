package main_test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"plinth.dev/plinth/backingimage/source/servertest"
	"plinth.dev/plinth/test/plinthtest"
)

const (
	backupAccessKey = "AKIATESTACCESSKEY"
	backupSecretKey = "sEcReTkEyOfTheTests"
	backupBucket    = "plinth-backups"
	backupVolume    = 160 << 20 // bytes of data
)

// backer is a machine that backs up to a real S3 server, encrypted.
type backer struct {
	*plinthtest.Standalone
	content []byte // of its volume
}

// mustBacker starts a machine and adds the target to it.
func mustBacker(t *testing.T, server string) *backer {
	t.Helper()
	b := &backer{Standalone: plinthtest.Start(t, plinthtest.Options{Args: []string{"--allow-source-cidr", "127.0.0.1/32"}})}
	env := filepath.Join(t.TempDir(), "env")
	mustBe(t, os.WriteFile(env, []byte("AWS_ACCESS_KEY_ID="+backupAccessKey+"\nAWS_SECRET_ACCESS_KEY="+backupSecretKey+"\nAWS_ENDPOINTS=http://"+server+"\nAWS_REGION=eu-test-1\nPLINTH_BACKUP_KEY="+strings.Repeat("0f", 32)+"\n"), 0o600))
	b.MustCLI("secret", "create", "s3", "--from-env-file", env)
	b.MustCLI("target", "add", "offsite", "--url", "s3://"+backupBucket+"/cluster", "--secret", "s3")
	return b
}

// file is a volume's on the disk.
func (b *backer) file(volume string) string {
	return filepath.Join(b.DataDir, "disk", "pool", "volumes", volume, "volume.raw")
}

// mustHold compares a volume with the content.
func (b *backer) mustHold(t *testing.T, volume string, content []byte) {
	t.Helper()
	got, err := os.ReadFile(b.file(volume))
	mustBe(t, err)
	if string(got) != string(content) {
		t.Errorf("volume %s has %d bytes, or other ones than were backed up (%d)", volume, len(got), len(content))
	}
}

// killed kills the machine after a moment and starts it again.
func (b *backer) killed() {
	time.Sleep(time.Duration(rand.IntN(400)) * time.Millisecond)
	b.Kill()
	b.Restart()
}

// rounds of kills; `make crash` has more.
func rounds() int {
	if n, err := strconv.Atoi(os.Getenv("PLINTH_CRASH_ROUNDS")); err == nil {
		return n
	}
	return 2
}

// TestBackupsSurviveKills backs up and restores under a process that is killed at any moment, and then in a new cluster.
func TestBackupsSurviveKills(t *testing.T) {
	dir := t.TempDir()
	mustBe(t, os.Mkdir(filepath.Join(dir, backupBucket), 0o700))
	server := servertest.MustS3(t, dir, backupAccessKey, backupSecretKey)
	b := mustBacker(t, server)
	b.MustCLI("volume", "create", "db", "--size", "256Mi", "--block")
	b.content = make([]byte, 256<<20)
	random := rand.NewChaCha8([32]byte{3})
	random.Read(b.content[:backupVolume])
	b.waits(t, "db")
	mustBe(t, os.WriteFile(b.file("db"), b.content, 0o600))
	for n := range rounds() {
		at := rand.IntN(backupVolume - 1<<20)
		random.Read(b.content[at : at+1<<20])
		mustBe(t, os.WriteFile(b.file("db"), b.content, 0o600))
		name, volume := fmt.Sprint("backup-", n), fmt.Sprint("restored-", n)
		b.MustCLI("backup", "create", "db", "--name", name, "--wait=false")
		b.killed()
		b.mustBeReady(t, name)
		b.MustCLI("backup", "verify", name)
		b.MustCLI("backup", "restore", name, "--as", volume, "--block", "--wait=false")
		b.killed()
		b.waits(t, volume)
		b.mustHold(t, volume, b.content)
		b.MustCLI("volume", "rm", volume)
	}
	b.MustCLI("volume", "rm", "db")
	last := fmt.Sprint("backup-", rounds()-1)
	for secret, what := range map[string]string{backupSecretKey: "the secret key", strings.Repeat("0f", 32): "the backup key"} {
		if strings.Contains(b.Log(), secret) || strings.Contains(b.MustCLI("backup", "show", last, "-o", "yaml")+b.MustCLI("target", "show", "offsite", "-o", "yaml"), secret) {
			t.Errorf("%s can be read", what)
		}
	}
	fresh := mustBacker(t, server)
	if list := fresh.MustCLI("backup", "ls", "--target", "offsite"); !strings.Contains(list, last) {
		t.Errorf("the new cluster lists %s", list)
	}
	fresh.MustCLI("backup", "restore", last, "--target", "offsite", "--as", "db", "--block")
	fresh.mustHold(t, "db", b.content)
	fresh.MustCLI("backup", "rm", last, "--target", "offsite")
	if r := fresh.CLI("backup", "verify", last, "--target", "offsite"); r.Code == 0 {
		t.Errorf("a backup that was removed is verified: %+v", r)
	}
}

// mustBeReady waits until a backup is complete.
func (b *backer) mustBeReady(t *testing.T, name string) {
	t.Helper()
	var state struct {
		Status struct{ State string }
	}
	b.eventually(t, "backup "+name, func() (string, bool) {
		text := b.MustCLI("backup", "show", name, "-o", "json")
		mustBe(t, json.Unmarshal([]byte(text), &state))
		return text, state.Status.State == "ready"
	})
}

// waits waits until a volume is ready.
func (b *backer) waits(t *testing.T, volume string) {
	t.Helper()
	b.eventually(t, "volume "+volume, func() (string, bool) {
		text := b.MustCLI("volume", "show", volume)
		return text, strings.Contains(text, " ready\n")
	})
}

func (b *backer) eventually(t *testing.T, what string, is func() (string, bool)) {
	t.Helper()
	last := ""
	for deadline := time.Now().Add(2 * time.Minute); time.Now().Before(deadline); time.Sleep(200 * time.Millisecond) {
		var ok bool
		if last, ok = is(); ok {
			return
		}
	}
	t.Fatalf("%s: the last state is %s", what, last)
}

func mustBe(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}
