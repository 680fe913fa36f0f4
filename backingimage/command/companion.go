package command

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
)

// Companion is a program that ends when this process does, however that ends.
type Companion struct {
	cmd   *exec.Cmd
	ended chan struct{}
}

// Accompany starts the program at a path, with an open file as its file 3 and input on its standard input, where what is secret is seen by
// nobody else. It has our environment and our standard error.
func Accompany(path string, input []byte, file *os.File) (*Companion, error) {
	cmd := exec.Command(path)
	cmd.Dir = "/"
	cmd.Stdin, cmd.Stderr = bytes.NewReader(input), os.Stderr
	cmd.ExtraFiles = []*os.File{file}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	c := &Companion{cmd: cmd, ended: make(chan struct{})}
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // the kernel takes the end of the thread that started it for the end of its parent
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait()
		}
		close(c.ended)
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", path, err)
	}
	return c, nil
}

// Ended is closed when the program has ended.
func (c *Companion) Ended() <-chan struct{} { return c.ended }

// End kills the program and waits until it has ended.
func (c *Companion) End() {
	_ = c.cmd.Process.Kill() // it fails when the program has ended
	<-c.ended
}
