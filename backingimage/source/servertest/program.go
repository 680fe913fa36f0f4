package servertest

import (
	"bytes"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/crypto/bcrypt"

	"plinth.dev/plinth/test/plinthtest"
)

// within is how long a server's program may take to answer.
const within = 30 * time.Second

// MustRun runs a server's program on a free port of 127.0.0.1 until the test ends, and returns its address when it answers.
// command makes the command for an address; it is called again with another when the port was taken meanwhile.
func MustRun(tb testing.TB, command func(address string) *exec.Cmd) string {
	tb.Helper()
	var output bytes.Buffer
	for range 5 {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			tb.Fatal(err)
		}
		address := listener.Addr().String()
		listener.Close()
		cmd := command(address)
		output.Reset()
		cmd.Stdout, cmd.Stderr = &output, &output
		if err := cmd.Start(); err != nil {
			tb.Fatal(err)
		}
		ended := make(chan struct{})
		go func() { cmd.Wait(); close(ended) }()
		tb.Cleanup(func() { cmd.Process.Kill(); <-ended })
		if answers(address, ended) {
			return address
		}
		cmd.Process.Kill()
		<-ended
	}
	tb.Fatalf("the server does not answer: %s", output.String())
	return ""
}

// answers waits until somebody accepts connections at the address, or the program ended.
func answers(address string, ended <-chan struct{}) bool {
	for deadline := time.Now().Add(within); time.Now().Before(deadline); {
		conn, err := net.Dial("tcp", address)
		if err == nil {
			conn.Close()
		}
		select {
		case <-ended:
			return false
		case <-time.After(50 * time.Millisecond):
			if err == nil {
				return true
			}
		}
	}
	return false
}

// MustRegistry runs a container registry in a directory and returns its address; with a user, it wants that login.
func MustRegistry(tb testing.TB, dir, user, password string) string {
	tb.Helper()
	auth := ""
	if user != "" {
		hash, err := bcrypt.GenerateFromPassword([]byte(password), bcrypt.MinCost)
		must(tb, err)
		file := filepath.Join(tb.TempDir(), "htpasswd")
		must(tb, os.WriteFile(file, []byte(user+":"+string(hash)+"\n"), 0o600))
		auth = "auth: {htpasswd: {realm: test, path: " + file + "}}\n"
	}
	program, config := plinthtest.MustTool(tb, "docker-registry"), filepath.Join(tb.TempDir(), "config.yml")
	return MustRun(tb, func(address string) *exec.Cmd {
		must(tb, os.WriteFile(config, []byte("version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\n"+
			"storage: {filesystem: {rootdirectory: "+dir+"}, delete: {enabled: true}}\nhttp: {addr: "+address+"}\n"+auth), 0o600))
		return exec.Command(program, "serve", config)
	})
}

// MustS3 runs an S3 server over a directory, whose folders are the buckets, and returns its address. The keys are root's.
func MustS3(tb testing.TB, dir, accessKey, secretKey string) string {
	tb.Helper()
	program, accounts := plinthtest.MustTool(tb, "versitygw"), tb.TempDir()
	return MustRun(tb, func(address string) *exec.Cmd {
		cmd := exec.Command(program, "--port", address, "--region", "eu-test-1", "--quiet", "--iam-dir", accounts, "posix", dir)
		cmd.Env = []string{"ROOT_ACCESS_KEY=" + accessKey, "ROOT_SECRET_KEY=" + secretKey}
		return cmd
	})
}
