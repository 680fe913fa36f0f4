package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"plinth.dev/plinth/test/e2e/rig"
)

func main() {
	dir := rig.Isolate()
	ctx := context.Background()
	t := time.Now()
	lap := func(s string) { fmt.Println(time.Since(t).Round(time.Millisecond), s) }
	p, err := rig.Build(ctx, "/work/wt/rig/test/e2e", os.Stdout)
	check(err)
	lap("built")
	images, err := rig.ProgramImages(dir, p, map[string]string{rig.PauseImage: "pause"})
	check(err)
	check(rig.WriteArchive(filepath.Join(dir, "x.tar"), images))
	lap("images")
	c, err := rig.New(ctx, rig.Options{Directory: dir, Programs: p, Nodes: 3, Archives: []string{filepath.Join(dir, "x.tar")}})
	if err != nil {
		out, _ := exec.Command("sh", "-c", "tail -n 20 "+dir+"/log/*").CombinedOutput()
		fmt.Println(string(out))
	}
	check(err)
	lap("cluster")
	cmd := exec.Command("bash", "-c", os.Args[1])
	cmd.Env = append(os.Environ(), "KUBECONFIG="+c.Kubeconfig, "PATH="+string(p)+":"+os.Getenv("PATH"))
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Run()
	for _, n := range c.Nodes[:1] {
		check(n.PowerOff(ctx))
		lap("off")
		check(n.Start(ctx))
		check(n.WaitReady(ctx))
		lap("on")
	}
}
func check(err error) {
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}
