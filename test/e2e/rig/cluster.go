package rig

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// The network of a cluster: the control plane's machine has the bridge and its first address, node i the address 10+i and for its
// pods 10.77.(100+i).0/24. Nothing else is on it, and it leads nowhere.
const (
	bridge         = "kbr0"
	Address        = "10.77.0.1" // of the control plane's machine, as nodes and pods reach it
	serviceAddress = "10.96.0.1" // of the Service "kubernetes", which pods use
)

// Options of a cluster.
type Options struct {
	Directory string   // of the run, from Isolate
	Programs  Programs // from Build
	Nodes     int
	Archives  []string // of the images that every node has

	CountRequests bool // to the API server, see Requests
}

// Cluster is a Kubernetes.
type Cluster struct {
	Kubeconfig string // of its administrator
	Nodes      []*Node

	options Options
	access  *access
	parts   []*process
}

// New starts a cluster and returns when its nodes are ready. It ends with this process.
func New(ctx context.Context, o Options) (*Cluster, error) {
	c := &Cluster{options: o, Kubeconfig: filepath.Join(o.Directory, "admin.conf")}
	for _, dir := range []string{c.logs(), c.Shared()} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, err
		}
	}
	if err := c.network(ctx); err != nil {
		return nil, fmt.Errorf("make the network: %w", err)
	}
	var names []string
	for i := range o.Nodes {
		n := newNode(c, i+1)
		c.Nodes, names = append(c.Nodes, n), append(names, n.Name)
	}
	var err error
	if c.access, err = newAccess(filepath.Join(o.Directory, "access"), names, Address, serviceAddress, "127.0.0.1"); err != nil {
		return nil, err
	}
	if err := c.access.kubeconfig(c.Kubeconfig, admin); err != nil {
		return nil, err
	}
	group, together := errgroup.WithContext(ctx)
	group.Go(func() error { return c.controlPlane(together) })
	for _, n := range c.Nodes {
		group.Go(func() error { return n.Start(together) })
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	for _, n := range c.Nodes {
		if err := n.WaitReady(ctx); err != nil {
			return nil, err
		}
	}
	return c, nil
}

func (c *Cluster) logs() string { return filepath.Join(c.options.Directory, "log") }

// Logs is the directory of what the parts of the cluster log.
func (c *Cluster) Logs() string { return c.logs() }

const sharedName = "shared"

// Shared is the directory that every node has at /mnt/backups, as machines have what they mount of one server.
func (c *Cluster) Shared() string { return filepath.Join(c.options.Directory, sharedName) }

func (c *Cluster) network(ctx context.Context) error {
	for _, args := range [][]string{
		{"link", "set", "lo", "up"},
		// An address of its own: else the bridge takes one of its ports', and with a node that is switched off the others lose the API server for half a minute.
		{"link", "add", bridge, "address", "0a:00:0a:4d:00:01", "type", "bridge"},
		{"addr", "add", Address + "/24", "dev", bridge},
		{"link", "set", bridge, "up"},
		{"addr", "add", serviceAddress + "/32", "dev", "lo"},
	} {
		if err := do(ctx, "ip", args...); err != nil {
			return err
		}
	}
	return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0)
}

// controlPlane starts its programs, each when what it needs is there.
func (c *Cluster) controlPlane(ctx context.Context) error {
	const etcd = "http://127.0.0.1:2379"
	err := c.start("etcd", "--data-dir", filepath.Join(c.options.Directory, "etcd"), "--log-level", "warn", "--unsafe-no-fsync",
		"--listen-client-urls", etcd, "--advertise-client-urls", etcd, "--listen-peer-urls", "http://127.0.0.1:2380",
		"--initial-advertise-peer-urls", "http://127.0.0.1:2380", "--initial-cluster", "default=http://127.0.0.1:2380")
	if err != nil {
		return err
	}
	if err := eventually(time.Minute, "etcd", func() error { return c.answers(ctx, etcd+"/health") }); err != nil {
		return err
	}
	audit, err := c.auditFlags()
	if err != nil {
		return err
	}
	if err := c.start("kube-apiserver", append(c.apiServerFlags(etcd), audit...)...); err != nil {
		return err
	}
	err = eventually(2*time.Minute, "the API server", func() error {
		_, err := output(c.Kubectl(ctx, "get", "--raw", "/readyz"))
		return c.alive(err)
	})
	if err != nil {
		return err
	}
	return c.controllers()
}

func (c *Cluster) apiServerFlags(etcd string) []string {
	p := c.access.path
	return []string{
		"--etcd-servers", etcd, "--bind-address", "0.0.0.0", "--secure-port", "443", "--advertise-address", Address,
		"--service-cluster-ip-range", "10.96.0.0/16", "--tls-cert-file", p("apiserver.crt"), "--tls-private-key-file", p("apiserver.key"),
		"--client-ca-file", p("ca.crt"), "--token-auth-file", p("tokens.csv"),
		"--requestheader-client-ca-file", p("ca.crt"), "--requestheader-allowed-names", "nobody", // no API is served by others
		"--requestheader-username-headers", "X-Remote-User", "--requestheader-group-headers", "X-Remote-Group", "--requestheader-extra-headers-prefix", "X-Remote-Extra-",
		"--service-account-issuer", "https://kubernetes.default.svc", "--service-account-key-file", p("sa.key"), "--service-account-signing-key-file", p("sa.key"),
		"--authorization-mode", "Node,RBAC", "--enable-admission-plugins", "NodeRestriction", "--allow-privileged=true", "--kubelet-preferred-address-types", "InternalIP",
	}
}

func (c *Cluster) controllers() error {
	p := c.access.path
	for name, user := range map[string]string{"kube-controller-manager": controllerManager, "kube-scheduler": scheduler} {
		kubeconfig := p(name + ".conf")
		if err := c.access.kubeconfig(kubeconfig, user); err != nil {
			return err
		}
		flags := []string{"--kubeconfig", kubeconfig, "--authentication-kubeconfig", kubeconfig, "--authorization-kubeconfig", kubeconfig, "--leader-elect=false"}
		if user == controllerManager {
			flags = append(flags, "--service-account-private-key-file", p("sa.key"), "--root-ca-file", p("ca.crt"), "--use-service-account-credentials",
				"--cluster-signing-cert-file", p("ca.crt"), "--cluster-signing-key-file", p("ca.key"))
		}
		if err := c.start(name, flags...); err != nil {
			return err
		}
	}
	return nil
}

// StartController starts one more program beside the control plane, with the administrator's powers.
func (c *Cluster) StartController(name string, args ...string) error {
	return c.start(name, append([]string{"--kubeconfig", c.Kubeconfig}, args...)...)
}

func (c *Cluster) start(name string, args ...string) error {
	p, err := start(c.logs(), name, exec.Command(c.options.Programs.Path(name), args...))
	c.parts = append(c.parts, p)
	return err
}

// alive adds to an error that a part of the control plane has ended.
func (c *Cluster) alive(err error) error {
	for _, p := range c.parts {
		if ended := p.running(); ended != nil {
			return ended
		}
	}
	return err
}

func (c *Cluster) answers(ctx context.Context, url string) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return c.alive(err)
	}
	response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", url, response.Status)
	}
	return nil
}

// Kubectl is a command of the cluster's administrator.
func (c *Cluster) Kubectl(ctx context.Context, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, c.options.Programs.Path("kubectl"), append([]string{"--kubeconfig", c.Kubeconfig}, args...)...)
}

// Stop ends the nodes, so that their last words are in the logs. It is a courtesy: without it they end with this process.
func (c *Cluster) Stop() {
	for _, n := range c.Nodes {
		n.kill(unix.SIGKILL)
	}
}
