package embedded

import (
	"context"
	"fmt"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"plinth.dev/plinth/backingimage/durable"
)

// announce says how nodes of other machines join.
func (s *Server) announce(context.Context) error {
	return s.joining.Announce("https://"+s.others, s.credentials.certificate)
}

// writeKubeconfig is the last step of a start: who sees the file change may use it.
func (s *Server) writeKubeconfig(context.Context) error {
	const name = "plinth"
	cfg := clientcmdapi.NewConfig()
	cfg.Clusters[name] = &clientcmdapi.Cluster{Server: "https://" + s.address, CertificateAuthorityData: s.credentials.certificate}
	cfg.AuthInfos[name] = &clientcmdapi.AuthInfo{Token: s.credentials.token}
	cfg.Contexts[name] = &clientcmdapi.Context{Cluster: name, AuthInfo: name}
	cfg.CurrentContext = name
	content, err := clientcmd.Write(*cfg)
	if err != nil {
		return fmt.Errorf("encode it: %w", err)
	}
	return durable.WriteFile(s.dir.kubeconfig, content, 0o600)
}
