package embedded

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"log"
	"net"
	"net/http"
	"time"

	"go.opentelemetry.io/otel/trace/noop"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apiextensions-apiserver/pkg/apiserver"
	"k8s.io/apiextensions-apiserver/pkg/generated/openapi"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apiserver/pkg/authentication/request/bearertoken"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	openapinamer "k8s.io/apiserver/pkg/endpoints/openapi"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/apiserver/pkg/util/compatibility"
	"k8s.io/apiserver/pkg/util/webhook"
	"k8s.io/client-go/rest"
	"k8s.io/klog/v2"
)

// apiServer is the API server while it runs.
type apiServer struct {
	*apiserver.CustomResourceDefinitions
	http http.Server
	stop context.CancelFunc // ends the controllers and the watches
	done chan struct{}      // closed when the listener is
}

// startAPI returns when the API serves the definitions that etcd holds.
func (s *Server) startAPI(ctx context.Context) error {
	listener, err := listen(s.opts.Listen, s.dir.address)
	if err != nil {
		return err
	}
	own, others := s.opts.places()
	_, port, _ := net.SplitHostPort(listener.Addr().String())
	s.address, s.others = net.JoinHostPort(own, port), net.JoinHostPort(others, port)
	crds, err := s.apiConfig().Complete().New(genericapiserver.NewEmptyDelegate())
	if err != nil {
		listener.Close()
		return fmt.Errorf("build it: %w", err)
	}
	addDiscovery(crds)
	crds.GenericAPIServer.PrepareRun()

	life, stop := context.WithCancel(context.WithoutCancel(ctx))
	s.api = &apiServer{CustomResourceDefinitions: crds, stop: stop, done: make(chan struct{})}
	s.onStop("close the API server", s.api.close)
	s.api.serve(life, listener, s.credentials.pair, s.end)
	crds.GenericAPIServer.RunPostStartHooks(life)
	synced := crds.Informers.Apiextensions().V1().CustomResourceDefinitions().Informer().HasSynced
	if err := s.poll(ctx, func() (bool, error) { return synced(), nil }); err != nil {
		return fmt.Errorf("wait for the stored definitions: %w", err)
	}
	return nil
}

// serve answers requests until close.
func (a *apiServer) serve(life context.Context, l net.Listener, pair tls.Certificate, died func(error)) {
	a.http = http.Server{
		Handler:           impatient(a.GenericAPIServer.Handler),
		TLSConfig:         &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12},
		BaseContext:       func(net.Listener) context.Context { return life },
		ReadHeaderTimeout: 30 * time.Second,
		IdleTimeout:       90 * time.Second,
		MaxHeaderBytes:    1 << 20,
		ErrorLog:          log.New(logWriter{klog.FromContext(life)}, "", 0),
		HTTP2:             &http.HTTP2Config{MaxConcurrentStreams: 1000}, // each watch of a process is a stream of one connection
	}
	go func() {
		defer close(a.done)
		if err := a.http.ServeTLS(l, "", ""); !errors.Is(err, http.ErrServerClosed) {
			died(fmt.Errorf("serve the API: %w", err))
		}
	}()
}

// restTime is for how long the rest of a request may come that has been answered. Replaced in tests.
var restTime = 10 * time.Second

// impatient bounds how long a caller, who need not have a token, may keep a connection by not sending what its request should still have: the
// library waits for that. HTTP/2 does not.
func impatient(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor == 1 {
			defer func() { _ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(restTime)) }() // a connection that cannot have one has its own
		}
		h.ServeHTTP(w, r)
	})
}

// drainTime is how long running requests may take to finish when the server stops. Watches do not finish; they are ended.
const drainTime = 2 * time.Second

// close refuses new requests, lets running ones finish, and ends the rest. http.Server.Shutdown is no help: it would wait
// for the watches, and a second for each HTTP/2 client to say goodbye.
func (a *apiServer) close(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, drainTime)
	defer cancel()
	_ = closer(a.GenericAPIServer.NonLongRunningRequestWaitGroup.Wait)(ctx) // who is not through by then is cut off
	a.stop()
	_ = a.http.Close()
	<-a.done
	a.GenericAPIServer.Destroy()
	return nil
}

// apiConfig configures the server field by field; see the package comment for why. What is not set is off:
// audit, priority and fairness, metrics, profiling, encryption at rest.
func (s *Server) apiConfig() *apiserver.Config {
	client := s.RESTConfig()
	generic := genericapiserver.NewRecommendedConfig(apiserver.Codecs)
	generic.ExternalAddress = s.others
	generic.EffectiveVersion = compatibility.DefaultBuildEffectiveVersion()
	generic.MergedResourceConfig = apiserver.DefaultAPIResourceConfigSource()
	generic.EnableIndex = false
	generic.EnableMetrics = false
	generic.EnableProfiling = false
	generic.StorageObjectCountTracker = nil
	generic.RESTOptionsGetter = newStorage(s.dir.socket, apiserver.Codecs.LegacyCodec(apiextensionsv1.SchemeGroupVersion), s.compactEvery)

	// The server is its own client. It has a token of its own, which nobody else ever sees.
	generic.LoopbackClientConfig = rest.CopyConfig(client)
	generic.LoopbackClientConfig.BearerToken = rand.Text()
	generic.Authentication.Authenticator = bearertoken.New(tokens{owner: client.BearerToken, nodes: s.joining})
	generic.Authorization.Authorizer = authorizer.AuthorizerFunc(authorize)
	generic.AdmissionControl = ownObjects{}

	// Without both, kubectl explain has nothing to show, and apply nothing to validate with.
	names := openapinamer.NewDefinitionNamer(apiserver.Scheme)
	generic.OpenAPIConfig = genericapiserver.DefaultOpenAPIConfig(openapi.GetOpenAPIDefinitions, names)
	generic.OpenAPIV3Config = genericapiserver.DefaultOpenAPIV3Config(openapi.GetOpenAPIDefinitions, names)

	// This hook exits the process when the server is stopped before it is through; startAPI does its work.
	generic.DisabledPostStartHooks.Insert("crd-informer-synced")

	return &apiserver.Config{
		GenericConfig: generic,
		ExtraConfig: apiserver.ExtraConfig{
			CRDRESTOptionsGetter: newStorage(s.dir.socket, unstructured.UnstructuredJSONScheme, s.compactEvery),
			AuthResolverWrapper:  webhook.NewDefaultAuthenticationInfoResolverWrapper(nil, nil, generic.LoopbackClientConfig, noop.NewTracerProvider()),
		},
	}
}

// logWriter takes what net/http has to say of its clients, such as failed handshakes.
type logWriter struct{ logger klog.Logger }

func (w logWriter) Write(line []byte) (int, error) {
	w.logger.V(4).Info("API connection", "message", string(line))
	return len(line), nil
}
