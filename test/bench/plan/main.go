// Command plan measures how long it takes to decide about the copies of 50 images on 1,000 nodes, 27,500 copies in all, as after a
// change that concerns every image. The rival is what that may take: 100 ms. Time is the processor's, as the work is done on one
// and nothing is waited for.
//
// One line: name <TAB> ours <TAB> rival <TAB> ratio <TAB> bound.
package main

import (
	"flag"
	"fmt"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"plinth.dev/plinth/backingimage/controller"
	"plinth.dev/plinth/backingimage/controller/controllertest"
)

const (
	nodes  = 1000
	images = 50
	budget = 100 * time.Millisecond
)

func main() {
	runs := flag.Int("runs", 21, "plans of the whole cluster; the median counts")
	flag.Parse()
	cluster := controllertest.Cluster(nodes, images)
	var took []time.Duration
	for range *runs {
		begin := cpuTime()
		for _, s := range cluster {
			controller.Plan(s)
		}
		took = append(took, cpuTime()-begin)
	}
	slices.Sort(took)
	median := took[len(took)/2]
	fmt.Printf("plan of %d images on %d nodes : budget\t%v\t%v\t%.2f\t1\n", images, nodes, median.Round(time.Microsecond), budget, median.Seconds()/budget.Seconds())
	if median > budget {
		os.Exit(1)
	}
}

// cpuTime is what this process has used of its processors, garbage collection included.
func cpuTime() time.Duration {
	var r unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &r); err != nil {
		fmt.Fprintln(os.Stderr, "plan:", err)
		os.Exit(1)
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}
