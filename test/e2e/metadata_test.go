package e2e

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"

	"github.com/kubernetes-csi/external-snapshot-metadata/pkg/iterator"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/status"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/clientcmd"
)

// A backup program that has no more rights than docs/how-to/snapshots.md gives it asks with Kubernetes' own client where a snapshot has data, and what
// was written since another: it is told that and nothing more, and what it is told makes of the one snapshot the other, byte by byte.
func TestBackupProgramIsToldChangedBlocks(t *testing.T) {
	s := newSpace(t)
	program := s.backupProgram()
	image := mustImage(t, ext4Image)
	class, snapshots := s.class("c", late, s.onDemand("golden", image)), s.snapshotClass("snap", "type: snap")
	pod := s.pod("source", []string{s.claim("source", class, "100Mi", asBlock)})
	node := s.running(pod)
	s.write(pod, block{80 << 20, 1 << 20})
	s.snapshot("monday", snapshots, "source")
	changes := []block{{4096, 4096}, {33 << 20, 3 * 4096}, {80<<20 + 256<<10, 4096}, {90<<20 + 4096, 2 << 20}} // of the image, of what monday has, of neither
	s.write(pod, changes...)
	s.snapshot("tuesday", snapshots, "source")
	restored := s.pod("restored", []string{
		s.claim("monday", class, "100Mi", asBlock, restoredFrom(ofSnapshot, "monday")), s.claim("tuesday", class, "100Mi", asBlock, restoredFrom(ofSnapshot, "tuesday")),
	}, onNode(node))
	s.running(restored)
	monday, tuesday := s.device(restored, deviceAt), s.device(restored, deviceAt+"1")
	full := s.mustAsk(program, iterator.Args{SnapshotName: "monday"})
	if got := full.over(make([]byte, len(monday)), monday); !bytes.Equal(got, monday) {
		t.Errorf("there is data beside what monday has by its word: %v", full)
	}
	if n := full.sum(); n < dataBytes+1<<20 || n > dataBytes+8<<20 {
		t.Errorf("monday has %d bytes of data by its word: %v", n, full)
	}
	changed := s.mustAsk(program, iterator.Args{SnapshotName: "tuesday", PrevSnapshotName: "monday"})
	if !slices.Equal(changed, changes) {
		t.Errorf("written were %v, and what changed are %v", changes, changed)
	}
	if got := changed.over(monday, tuesday); !bytes.Equal(got, tuesday) {
		t.Error("monday with what changed is not tuesday")
	}
	rest := s.mustAsk(program, iterator.Args{SnapshotName: "tuesday", PrevSnapshotName: "monday", StartingOffset: 50 << 20, MaxResults: 1})
	if !slices.Equal(rest, changes[2:]) {
		t.Errorf("from 50 MiB on %v were written, and what changed are %v", changes[2:], rest)
	}
	s.mustRefuse(iterator.Args{SnapshotName: "monday"})
}

// What changed in a filesystem while it was mounted is the file that was written, also what of it was in memory, and little beside it.
func TestBackupProgramIsToldWhatAFileTakes(t *testing.T) {
	s := newSpace(t)
	program := s.backupProgram()
	class, snapshots := s.class("c", late, s.onDemand("golden", mustImage(t, xfsImage))), s.snapshotClass("snap", "type: snap")
	pod := s.pod("source", []string{s.claim("source", class, "400Mi")})
	s.running(pod)
	s.snapshot("monday", snapshots, "source")
	s.exec(pod, "dd if=/dev/urandom of=/data/new bs=1048576 count=3 2>/dev/null")
	s.snapshot("tuesday", snapshots, "source")
	changed := s.mustAsk(program, iterator.Args{SnapshotName: "tuesday", PrevSnapshotName: "monday"})
	if n := changed.sum(); n < 3<<20 || n > 4<<20 {
		t.Errorf("3 MiB were written, and %d bytes changed: %v", n, changed)
	}
}

// block is a range of bytes.
type block struct{ at, bytes int64 }

// blocks are in order, and those that touch are one.
type blocks []block

// over is base with these blocks of data.
func (b blocks) over(base, data []byte) []byte {
	patched := slices.Clone(base)
	for _, r := range b {
		copy(patched[r.at:], data[r.at:r.at+r.bytes])
	}
	return patched
}

func (b blocks) sum() (bytes int64) {
	for _, r := range b {
		bytes += r.bytes
	}
	return bytes
}

// SnapshotMetadataIteratorRecord implements iterator.IteratorEmitter: the client tells of blocks, and these are added.
func (b *blocks) SnapshotMetadataIteratorRecord(_ int, m iterator.IteratorMetadata) error {
	for _, told := range m.BlockMetadata {
		if last := len(*b) - 1; last >= 0 && (*b)[last].at+(*b)[last].bytes == told.ByteOffset {
			(*b)[last].bytes += told.SizeBytes
			continue
		}
		*b = append(*b, block{told.ByteOffset, told.SizeBytes})
	}
	return nil
}

// SnapshotMetadataIteratorDone implements iterator.IteratorEmitter.
func (b *blocks) SnapshotMetadataIteratorDone(int) error { return nil }

// write fills blocks of a pod's device with what they did not have.
func (s *space) write(pod string, list ...block) {
	s.Helper()
	for _, b := range list {
		s.exec(pod, fmt.Sprintf("dd if=/dev/urandom of=%s bs=4096 seek=%d count=%d conv=notrunc,fsync 2>/dev/null", deviceAt, b.at/4096, b.bytes/4096))
	}
}

// device is all that a pod's device has.
func (s *space) device(pod, path string) []byte {
	s.Helper()
	return []byte(mustKubectl(s, "", "exec", "-n", s.name, pod, "-c", "c", "--", "cat", path))
}

// backupProgram are the clients of an account that has the rights of docs/how-to/snapshots.md.
func (s *space) backupProgram() iterator.Clients {
	s.Helper()
	if the.rig == nil {
		s.Skip("left out: this machine has no way to the addresses of this cluster's pods")
	}
	rights, err := documented("snapshots.md", "Changed blocks")
	if err != nil {
		s.Fatal(err)
	}
	s.Cleanup(func() {
		mustKubectl(s, "", "delete", "clusterrole,clusterrolebinding", "changed-blocks", "--ignore-not-found")
	})
	if err := follow(s.Context(), s.TempDir(), strings.ReplaceAll(rights, "backup-system", s.name)); err != nil {
		s.Fatal(err)
	}
	return s.clients(mustKubeconfigOf(s, strings.TrimSpace(mustKubectl(s, "", "create", "token", "-n", s.name, "backup"))))
}

func (s *space) clients(kubeconfig string) iterator.Clients {
	s.Helper()
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		s.Fatal(err)
	}
	clients, err := iterator.BuildClients(config)
	if err != nil {
		s.Fatal(err)
	}
	return clients
}

// mustAsk is what a backup program is told of snapshots of the test.
func (s *space) mustAsk(program iterator.Clients, args iterator.Args) blocks {
	s.Helper()
	var told blocks
	args.Clients, args.Namespace, args.Emitter = program, s.name, &told
	if err := iterator.GetSnapshotMetadata(s.Context(), args); err != nil {
		s.Fatal(err)
	}
	return told
}

// mustRefuse fails unless the same question is refused with the token of an account that may not read snapshots.
func (s *space) mustRefuse(args iterator.Args) {
	s.Helper()
	mustKubectl(s, "", "create", "serviceaccount", "-n", s.name, "stranger")
	var told blocks
	args.Clients, args.Namespace, args.Emitter = s.clients(the.kubeconfig), s.name, &told
	args.SANamespace, args.SAName = s.name, "stranger"
	if err := iterator.GetSnapshotMetadata(s.Context(), args); status.Code(err) != codes.PermissionDenied || told != nil {
		s.Errorf("who may not read snapshots is told %v: %v", told, err)
	}
}

// services has gRPC find the pods behind a Service by its name and port. In other clusters their DNS and what stands behind the addresses of
// Services do that; here there is neither.
type services struct{}

// Scheme implements resolver.Builder: what a name without a scheme has.
func (services) Scheme() string { return "dns" }

// Build implements resolver.Builder.
func (services) Build(target resolver.Target, to resolver.ClientConn, _ resolver.BuildOptions) (resolver.Resolver, error) {
	host, port, err := net.SplitHostPort(target.Endpoint())
	if err != nil {
		return nil, err
	}
	name, in, _ := strings.Cut(host, ".")
	addresses, err := readyBehind(context.Background(), in, name, port)
	if err != nil {
		return nil, fmt.Errorf("find the pods behind %s: %w", target.Endpoint(), err)
	}
	return services{}, to.UpdateState(resolver.State{Addresses: addresses})
}

// ResolveNow implements resolver.Resolver.
func (services) ResolveNow(resolver.ResolveNowOptions) {}

// Close implements resolver.Resolver.
func (services) Close() {}

// readyBehind lists where the pods that are ready serve a port of a Service.
func readyBehind(ctx context.Context, in, name, port string) ([]resolver.Address, error) {
	service, err := the.core.CoreV1().Services(in).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	parts, err := the.core.DiscoveryV1().EndpointSlices(in).List(ctx, metav1.ListOptions{LabelSelector: discoveryv1.LabelServiceName + "=" + name})
	if err != nil {
		return nil, err
	}
	var found []resolver.Address
	for _, p := range service.Spec.Ports {
		for _, part := range parts.Items {
			for _, target := range part.Ports {
				if fmt.Sprint(p.Port) == port && *target.Name == p.Name {
					found = append(found, readyOf(part, *target.Port)...)
				}
			}
		}
	}
	return found, nil
}

func readyOf(part discoveryv1.EndpointSlice, port int32) (found []resolver.Address) {
	for _, e := range part.Endpoints {
		if *e.Conditions.Ready {
			found = append(found, resolver.Address{Addr: net.JoinHostPort(e.Addresses[0], fmt.Sprint(port))})
		}
	}
	return found
}
