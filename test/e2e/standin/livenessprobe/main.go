// livenessprobe does what the sidecar of that name does, which is not to be had as a Go module: it answers the kubelet's probes over HTTP
// with the driver's answer to CSI's. It takes the flags that manifests give the real one.
package main

import (
	"context"
	"flag"
	"log"
	"net/http"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

func main() {
	address := flag.String("csi-address", "/run/csi/socket", "the driver's socket")
	port := flag.String("health-port", "9808", "port of /healthz")
	endpoint := flag.String("http-endpoint", "", "address of /healthz, in place of --health-port")
	limit := flag.Duration("probe-timeout", time.Second, "how long the driver may take")
	flag.String("v", "", "accepted")
	flag.Parse()
	conn, err := grpc.NewClient("unix:"+*address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		log.Fatal(err)
	}
	driver := csi.NewIdentityClient(conn)
	http.HandleFunc("/healthz", func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), *limit)
		defer cancel()
		answer, err := driver.Probe(ctx, &csi.ProbeRequest{})
		switch {
		case err != nil:
			http.Error(w, err.Error(), http.StatusInternalServerError)
		case answer.GetReady() != nil && !answer.GetReady().GetValue():
			http.Error(w, "the driver is not ready", http.StatusInternalServerError)
		}
	})
	if *endpoint == "" {
		*endpoint = ":" + *port
	}
	log.Fatal(http.ListenAndServe(*endpoint, nil))
}
