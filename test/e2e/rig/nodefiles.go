package rig

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// sharedEtc is what a node's programs need of the host's /etc; what a host lacks, its nodes lack.
var sharedEtc = []string{"ld.so.cache", "ld.so.conf", "ld.so.conf.d", "alternatives", "passwd", "group", "nsswitch.conf", "mke2fs.conf", "os-release", "protocols", "services"}

// ownDirectories are those of a node's root that are its own. /usr, /dev and the libraries are the host's.
var ownDirectories = []string{
	"dev", "etc/cni/net.d", "etc/containerd", "etc/kubernetes", "opt/plinth-e2e", "proc", "root", "run", "mnt/backups", "sys", "tmp", "usr", "old",
	"var/lib/containerd", "var/lib/kubelet", "var/lib/cni", "var/log/pods", "var/log/containers", "var/tmp",
}

// writeFiles makes the node's root. Done again after a power-off, it leaves what lies on the disk.
func (n *Node) writeFiles() error {
	for _, d := range ownDirectories {
		if err := os.MkdirAll(filepath.Join(n.Root(), d), 0o755); err != nil {
			return err
		}
	}
	for path, text := range map[string]string{
		"etc/hostname":               n.Name + "\n",
		"etc/hosts":                  "127.0.0.1 localhost\n" + n.Address() + " " + n.Name + "\n",
		"etc/resolv.conf":            "",
		"etc/machine-id":             fmt.Sprintf("%032x\n", n.number),
		"etc/cni/net.d/10.conflist":  n.networkConfig(),
		"etc/containerd/config.toml": containerdConfig,
	} {
		if err := os.WriteFile(filepath.Join(n.Root(), path), []byte(text), 0o644); err != nil {
			return err
		}
	}
	if err := os.WriteFile(filepath.Join(n.dir, "programs"), []byte(n.cluster.options.Programs), 0o644); err != nil {
		return err
	}
	return n.cluster.access.kubeconfig(filepath.Join(n.Root(), "etc/kubernetes/kubelet.conf"), nodeUser(n.Name))
}

func (n *Node) networkConfig() string {
	return fmt.Sprintf(`{"cniVersion": "0.4.0", "name": "e2e", "plugins": [{"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false,
 "ipam": {"type": "host-local", "ranges": [[{"subnet": %q}]], "routes": [{"dst": "0.0.0.0/0"}]}}]}
`, n.podNetwork())
}

// PauseImage is the image of the container that holds a pod's namespaces.
const PauseImage = "plinth.dev/e2e/pause:1"

// containerdConfig holds for containerd 1.6, which reads versions up to 2, and for what came after, which converts it. The score of
// the OOM killer needs CAP_SYS_RESOURCE to be lowered, which root does not have everywhere.
const containerdConfig = `version = 2
root = '/var/lib/containerd'
state = '/run/containerd'
disabled_plugins = ['io.containerd.snapshotter.v1.btrfs', 'io.containerd.snapshotter.v1.zfs', 'io.containerd.snapshotter.v1.devmapper', 'io.containerd.nri.v1.nri']
[grpc]
  address = '/run/containerd/containerd.sock'
[plugins.'io.containerd.grpc.v1.cri']
  sandbox_image = '` + PauseImage + `'
  restrict_oom_score_adj = true
  disable_apparmor = true
  [plugins.'io.containerd.grpc.v1.cri'.cni]
    bin_dir = '/usr/lib/cni'
    conf_dir = '/etc/cni/net.d'
  [plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.runc]
    runtime_type = 'io.containerd.runc.v2'
`

// writeKubeletConfig leaves the kubelet's times as they are by default, so that what is measured is what users have.
func (n *Node) writeKubeletConfig(cgroup string) error {
	config := map[string]any{
		"apiVersion":                  "kubelet.config.k8s.io/v1beta1",
		"kind":                        "KubeletConfiguration",
		"authentication":              map[string]any{"anonymous": map[string]any{"enabled": true}, "webhook": map[string]any{"enabled": false}},
		"authorization":               map[string]any{"mode": "AlwaysAllow"}, // nothing but the API server reaches it
		"cgroupDriver":                "cgroupfs",
		"cgroupRoot":                  cgroup,
		"failCgroupV1":                false,
		"failSwapOn":                  false,
		"containerRuntimeEndpoint":    "unix:///run/containerd/containerd.sock",
		"volumePluginDir":             "/var/lib/kubelet/volumeplugins",
		"makeIPTablesUtilChains":      false,
		"oomScoreAdj":                 0,
		"evictionHard":                map[string]string{"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
		"imageGCHighThresholdPercent": 100,
		"resolvConf":                  "",
		"clusterDNS":                  []string{"10.96.0.10"}, // nobody is there: nothing here asks for names
	}
	text, err := json.Marshal(config)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(n.Root(), "etc/kubernetes/kubelet.yaml"), text, 0o644)
}

// cgroup is the name of the node's cgroup below each hierarchy's root.
func (n *Node) cgroup() string {
	return filepath.Join(filepath.Base(n.cluster.options.Directory), n.Name)
}

// makeCgroup makes the node's cgroup in every hierarchy and returns its name as the kubelet wants it.
func (n *Node) makeCgroup() (string, error) {
	roots := hierarchies()
	if len(roots) == 0 {
		return "", fmt.Errorf("no cgroups are mounted below /sys/fs/cgroup")
	}
	for _, root := range roots {
		dir := root
		for part := range strings.SplitSeq(n.cgroup(), "/") {
			enableControllers(dir)
			dir = filepath.Join(dir, part)
			if err := os.MkdirAll(dir, 0o755); err != nil {
				return "", err
			}
			if err := fillCpuset(dir); err != nil {
				return "", err
			}
		}
		enableControllers(dir)
	}
	return "/" + n.cgroup(), nil
}

// enableControllers hands down to the children of a cgroup of version 2 what the kubelet uses; one that the machine lacks is left out.
func enableControllers(dir string) {
	for _, controller := range []string{"cpu", "cpuset", "memory", "pids", "io", "hugetlb"} {
		os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+controller), 0) //nolint:errcheck // see above
	}
}

// fillCpuset gives a cpuset of version 1, which begins empty, what its parent has. Nothing can run in an empty one.
func fillCpuset(dir string) error {
	for _, name := range []string{"cpuset.cpus", "cpuset.mems"} {
		mine, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil || strings.TrimSpace(string(mine)) != "" {
			continue
		}
		all, err := os.ReadFile(filepath.Join(filepath.Dir(dir), name))
		if err != nil || strings.TrimSpace(string(all)) == "" {
			continue // version 2, where it inherits
		}
		if err := os.WriteFile(filepath.Join(dir, name), all, 0); err != nil {
			return err
		}
	}
	return nil
}
