// Package deploy holds what is installed: the custom resource definitions that controller-gen derives from
// backingimage/api, for clusters (kubectl apply -f deploy/crds) and, embedded here, for the control plane in the process.
package deploy

import "embed"

// CRDs has the definitions of all kinds of plinth.dev, in the folder crds.
//
//go:embed crds/plinth.dev_*.yaml
var CRDs embed.FS
