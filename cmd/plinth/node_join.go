package main

import (
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"plinth.dev/plinth/backingimage/store/join"
	"plinth.dev/plinth/cmd/internal/program"
)

// joinPlace is where a standalone keeps what its nodes join with.
type joinPlace struct{ dataDir string }

func (p *joinPlace) addFlags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&p.dataDir, "data-dir", "", "`directory` of the data of plinth standalone (default: that of its kubeconfig)")
}

func (p *joinPlace) open(c *cli) (*join.Directory, error) {
	dir := p.dataDir
	if dir == "" {
		paths, err := kubeconfigPaths(c.kubeconfig, os.Getenv)
		if err != nil {
			return nil, err
		}
		dir = filepath.Dir(paths[0])
	}
	return join.Open(join.DirectoryBelow(dir)), nil
}

func newNodeJoinConfigCommand(c *cli) *cobra.Command {
	var place joinPlace
	cmd := &cobra.Command{
		Use:   "join-config NAME",
		Short: "Print the kubeconfig with which another machine's agent joins this plinth standalone",
		Long: `Print a kubeconfig with the address of this machine's plinth standalone, its certificate and a token of the node's own. Whoever
has it can read all of Plinth's objects and write what belongs to that node: bring it to the other machine as you would a private
key, with mode 0600. It is not kept here; asking again gives a new token, and ends the last.

In a Kubernetes cluster use a service account instead.`,
		Example: `  plinth node join-config node-2 | ssh node-2 'umask 077; mkdir -p /etc/plinth; cat > /etc/plinth/kubeconfig'`,
		Args:    program.Exactly("NAME"),
		RunE: func(_ *cobra.Command, args []string) error {
			d, err := place.open(c)
			if err != nil {
				return err
			}
			content, server, err := d.Kubeconfig(args[0])
			if err != nil {
				return err
			}
			if onLoopback(server) {
				fmt.Fprintf(c.err, "plinth: the API listens on loopback (%s): this works on this machine only; for others start plinth standalone with --api-listen and --advertise-address\n", server)
			}
			_, err = c.out.Write(content)
			return err
		},
	}
	place.addFlags(cmd)
	return cmd
}

func onLoopback(server string) bool {
	u, err := url.Parse(server)
	if err != nil {
		return false
	}
	ip := net.ParseIP(u.Hostname())
	return ip != nil && ip.IsLoopback()
}

func newNodeRevokeCommand(c *cli) *cobra.Command {
	var place joinPlace
	cmd := &cobra.Command{
		Use:   "revoke NAME",
		Short: "Take back the token with which a node joined this plinth standalone",
		Long: `Take back the token that plinth node join-config gave. The node's agent is refused from its next request on; what is mounted there
stays mounted, and counts as silent soon. Its objects stay.`,
		Args:              program.Exactly("NAME"),
		ValidArgsFunction: nodes.complete(c),
		RunE: func(_ *cobra.Command, args []string) error {
			d, err := place.open(c)
			if err != nil {
				return err
			}
			if err := d.Revoke(args[0]); err != nil {
				return err
			}
			_, err = fmt.Fprintf(c.out, "node %s may no longer join\n", args[0])
			return err
		},
	}
	place.addFlags(cmd)
	return cmd
}
