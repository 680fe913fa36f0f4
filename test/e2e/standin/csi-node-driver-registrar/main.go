// csi-node-driver-registrar does what the sidecar of that name does, which is not to be had as a Go module: it tells the kubelet of a CSI
// driver. It takes the flags that manifests give the real one.
package main

import (
	"context"
	"flag"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

type server struct {
	registration.UnimplementedRegistrationServer
	driver, endpoint string
}

// GetInfo is the kubelet's question.
func (s server) GetInfo(context.Context, *registration.InfoRequest) (*registration.PluginInfo, error) {
	return &registration.PluginInfo{Type: registration.CSIPlugin, Name: s.driver, Endpoint: s.endpoint, SupportedVersions: []string{"1.0.0"}}, nil
}

// NotifyRegistrationStatus is its answer. A driver that it refuses begins anew.
func (s server) NotifyRegistrationStatus(_ context.Context, status *registration.RegistrationStatus) (*registration.RegistrationStatusResponse, error) {
	log.Printf("driver %s registered: %t %s", s.driver, status.PluginRegistered, status.Error)
	if !status.PluginRegistered {
		os.Exit(1)
	}
	return &registration.RegistrationStatusResponse{}, nil
}

func main() {
	address := flag.String("csi-address", "/run/csi/socket", "the driver's socket here")
	endpoint := flag.String("kubelet-registration-path", "", "the driver's socket as the kubelet sees it")
	directory := flag.String("plugin-registration-path", "/registration", "the kubelet's directory of registrations")
	probe := flag.String("http-endpoint", "", "address of /healthz")
	flag.String("mode", "", "accepted")
	flag.String("v", "", "accepted")
	flag.Duration("timeout", time.Second, "accepted")
	flag.Parse()
	s := server{driver: driverName(*address), endpoint: *endpoint}
	if *probe != "" {
		http.HandleFunc("/healthz", func(http.ResponseWriter, *http.Request) {})
		go func() { log.Fatal(http.ListenAndServe(*probe, nil)) }()
	}
	socket := filepath.Join(*directory, s.driver+"-reg.sock")
	os.Remove(socket)
	l, err := net.Listen("unix", socket)
	if err != nil {
		log.Fatal(err)
	}
	g := grpc.NewServer()
	registration.RegisterRegistrationServer(g, s)
	log.Fatal(g.Serve(l))
}

// driverName asks the driver, for as long as it does not answer.
func driverName(socket string) string {
	conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()
	for {
		info, err := csi.NewIdentityClient(conn).GetPluginInfo(context.Background(), &csi.GetPluginInfoRequest{}, grpc.WaitForReady(true))
		if err == nil {
			return info.GetName()
		}
		log.Printf("ask the driver's name: %v", err)
		time.Sleep(time.Second)
	}
}
