package command

import (
	"context"
	"io"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"plinth.dev/plinth/backingimage"
)

// Sandbox is what a program that works on hostile input may have. Beside the files named here it sees the programs and
// libraries under /usr, and nothing else of the machine: no network, no other process, no device, no environment, no
// privilege. It runs as nobody, in namespaces of its own that bubblewrap makes, and dies with us.
type Sandbox struct {
	Reads  map[string]string // files it may read: its path inside → the path outside
	Writes map[string]string // files that exist and that it may write: as Reads
	Output io.Writer         // gets its standard output, which Run returns otherwise; nil by default
	// Limits, each enforced by the kernel. Beyond one the program is killed or its call fails.
	CPU          time.Duration // of processors, whole seconds
	MemoryBytes  int64         // of address space
	LargestBytes int64         // of a file it writes
}

// SandboxPackages are the Debian packages that have what a Sandbox is made of.
const SandboxPackages = "bubblewrap, util-linux"

// Program of a sandbox. Its path is looked up outside, where /usr is the same.
func programPath(name string) (string, error) {
	path, err := exec.LookPath(name)
	if err != nil {
		return "", backingimage.Errorf(backingimage.Unsupported, "%s is not installed on this machine", name)
	}
	if !strings.HasPrefix(path, "/usr/") && !strings.HasPrefix(path, "/bin/") {
		return "", backingimage.Errorf(backingimage.Unsupported, "%s is installed at %s, where a sandbox cannot see it; install your distribution's package", name, path)
	}
	return path, nil
}

// Ready reports, as Unsupported, what of a sandbox or of the programs to run in it is not installed.
func Ready(programs ...string) error {
	for _, name := range append([]string{"bwrap", "prlimit"}, programs...) {
		if _, err := programPath(name); err != nil {
			return err
		}
	}
	return nil
}

// Run is the function Run for a program in the sandbox. Its limits show as exit codes: ExceededCPU.
func (s *Sandbox) Run(ctx context.Context, name string, args ...string) (string, error) {
	path, err := programPath(name)
	if err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, "bwrap", append(append(s.walls(), path), args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	out, err := run(ctx, cmd, name, s.Output, []string{"LC_ALL=C", "PATH=/usr/bin:/bin"})
	if stderr := Stderr(err); strings.HasPrefix(stderr, "bwrap: ") {
		return "", backingimage.Errorf(backingimage.Unsupported, "this machine does not let a process be confined: %s; allow user namespaces, or do without", stderr)
	}
	return out, err
}

// nobody is the user and group that the program takes itself for.
const nobody = "65534"

// walls are bubblewrap's arguments, and prlimit's, up to the program.
func (s *Sandbox) walls() []string {
	args := []string{
		"--unshare-all", "--unshare-user", "--uid", nobody, "--gid", nobody, "--cap-drop", "ALL", "--new-session", "--die-with-parent",
		"--clearenv", "--setenv", "LC_ALL", "C", "--setenv", "PATH", "/usr/bin:/bin",
		"--ro-bind", "/usr", "/usr", "--ro-bind-try", "/bin", "/bin", "--ro-bind-try", "/lib", "/lib", "--ro-bind-try", "/lib64", "/lib64",
		"--dev-bind", "/dev/null", "/dev/null",
	}
	for inside, outside := range s.Reads {
		args = append(args, "--ro-bind", outside, inside)
	}
	for inside, outside := range s.Writes {
		args = append(args, "--bind", outside, inside)
	}
	cpu := int64(s.CPU / time.Second)
	return append(args, "--remount-ro", "/", "--", "prlimit", "--core=0", "--nofile=64", "--cpu="+strconv.FormatInt(cpu, 10)+":"+strconv.FormatInt(cpu+1, 10),
		"--as="+strconv.FormatInt(s.MemoryBytes, 10), "--fsize="+strconv.FormatInt(s.LargestBytes, 10), "--")
}

// ExceededCPU reports whether a sandbox's program was ended because it used more of the processors than it may.
func ExceededCPU(err error) bool {
	const bySignal = 128
	code := ExitCode(err)
	return code == bySignal+int(syscall.SIGXCPU) || code == bySignal+int(syscall.SIGKILL)
}
