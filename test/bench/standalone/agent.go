package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// What an agent with so many copies may keep resident when it has nothing to do, and how long it may take to have nothing to do.
const (
	agentCopies = 200
	agentBudget = 60 // MiB
	agentIdle   = 75 * time.Second
)

// measureAgent watches the memory of a `plinth node` that joined and holds copies of small images.
func measureAgent(ctx context.Context, p *process, w *web) error {
	agent, err := p.join("agent")
	if err != nil {
		return err
	}
	defer agent.stop()
	if err := p.cli("node", "cordon", "bench"); err != nil { // the copies are to be the agent's
		return err
	}
	defer func() { _ = p.cli("node", "uncordon", "bench") }()
	for n := range agentCopies {
		if err := p.cli("image", "create", fmt.Sprintf("small-%d", n), "--url", w.path(1<<20, 64<<10)); err != nil {
			return err
		}
	}
	for n := range agentCopies {
		if err := p.cli("image", "wait", fmt.Sprintf("small-%d", n), "--timeout", "5m"); err != nil {
			return err
		}
	}
	busy, err := agent.resident()
	if err != nil {
		return err
	}
	select {
	case <-time.After(agentIdle):
	case <-ctx.Done():
		return ctx.Err()
	}
	idle, err := agent.resident()
	if err != nil {
		return err
	}
	row(fmt.Sprintf("resident memory of an idle agent with %d copies : budget (just after fetching them: %s)", agentCopies, mib(busy)), mib(idle), mib(agentBudget), idle/agentBudget, 1)
	return nil
}

// join starts a `plinth node` that joins the process.
func (p *process) join(name string) (*process, error) {
	dir, err := os.MkdirTemp(filepath.Dir(p.dir), "bench-node-")
	if err != nil {
		return nil, err
	}
	n := &process{dir: dir, bin: p.bin}
	kubeconfig, err := exec.Command(p.bin, "node", "join-config", name, "--kubeconfig", p.path("data/kubeconfig")).Output()
	if err != nil {
		return nil, fmt.Errorf("plinth node join-config: %w", err)
	}
	if err := os.WriteFile(n.path("kubeconfig"), kubeconfig, 0o600); err != nil {
		return nil, err
	}
	return n, n.run("node", "--kubeconfig", n.path("kubeconfig"), "--data-dir", n.path("data"), "--csi-endpoint", "unix://"+n.path("csi.sock"),
		"--node-name", name, "--pool-size", "4Gi", "--allow-source-cidr", "127.0.0.0/8")
}

// run starts plinth with these arguments and returns when it is ready; after an error nothing is left of it.
func (p *process) run(args ...string) error {
	log, err := os.Create(p.path("log"))
	if err != nil {
		return err
	}
	defer log.Close()
	p.cmd = exec.Command(p.bin, args...)
	p.cmd.Stdout, p.cmd.Stderr = log, log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		return err
	}
	if err := p.waitReady(); err != nil {
		p.stop()
		return err
	}
	return nil
}
