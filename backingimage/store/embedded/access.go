package embedded

import (
	"context"
	"crypto/subtle"
	"fmt"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"

	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/store/join"
)

// Who has the owner's token may do everything. A node that joined may read all of Plinth's objects, as an agent must, and write
// what is its own:
//
//	resource                                create  update, patch  status  delete
//	storagenodes                            own     own            own     -
//	disks                                   own     own            own     -
//	backingimagecopies, volumes, snapshots  -       own            own     -
//	everything else                         -       -              -       -
//
// A disk, a copy, a volume or a snapshot is a node's own when spec.nodeName, or a backup's
// status.nodeName, is that node after the write. So a node may take over what was another's, as
// it must when a disk is moved to it, and cannot put anything into another's hands, or report in its name.
const nodeUserPrefix = "plinth:node:"

// nodesGroup is the group of all nodes that joined.
const nodesGroup = "plinth:nodes"

// tokens tells who has a bearer token.
type tokens struct {
	owner string
	nodes *join.Directory
}

// AuthenticateToken implements authenticator.Token.
func (t tokens) AuthenticateToken(_ context.Context, token string) (*authenticator.Response, bool, error) {
	if subtle.ConstantTimeCompare([]byte(token), []byte(t.owner)) == 1 {
		return &authenticator.Response{User: &user.DefaultInfo{Name: "plinth", Groups: []string{user.AllAuthenticated, user.SystemPrivilegedGroup}}}, true, nil
	}
	node, err := t.nodes.NodeOf(token)
	if err != nil || node == "" {
		return nil, false, err
	}
	return &authenticator.Response{User: &user.DefaultInfo{Name: nodeUserPrefix + node, Groups: []string{user.AllAuthenticated, nodesGroup}}}, true, nil
}

// nodeOf returns the node that a user is, "" when it is none.
func nodeOf(u user.Info) string {
	if u == nil || !slices.Contains(u.GetGroups(), nodesGroup) {
		return ""
	}
	name, _ := strings.CutPrefix(u.GetName(), nodeUserPrefix)
	return name
}

// nodeVerbs are what a node may do with each resource and subresource, beside reading.
var nodeVerbs = map[string][]string{
	"storagenodes": {"create", "update", "patch"}, "storagenodes/status": {"update", "patch"},
	"disks": {"create", "update", "patch"}, "disks/status": {"update", "patch"},
	"backingimagecopies": {"update", "patch"}, "backingimagecopies/status": {"update", "patch"},
	"volumes": {"update", "patch"}, "volumes/status": {"update", "patch"},
	"snapshots": {"update", "patch"}, "snapshots/status": {"update", "patch"},
	"backups/status": {"update", "patch"},
}

// authorize implements authorizer.Authorizer: which kinds of request a user may make. Whose object it is, ownObjects checks.
func authorize(_ context.Context, a authorizer.Attributes) (authorizer.Decision, string, error) {
	if slices.Contains(a.GetUser().GetGroups(), user.SystemPrivilegedGroup) {
		return authorizer.DecisionAllow, "", nil
	}
	if nodeOf(a.GetUser()) == "" {
		return authorizer.DecisionDeny, "it is neither the owner nor a node", nil
	}
	resource := a.GetResource()
	if a.GetSubresource() != "" {
		resource += "/" + a.GetSubresource()
	}
	switch {
	case !a.IsResourceRequest() && a.IsReadOnly(), // discovery
		a.GetAPIGroup() == v1alpha1.GroupVersion.Group && (a.IsReadOnly() || slices.Contains(nodeVerbs[resource], a.GetVerb())):
		return authorizer.DecisionAllow, "", nil
	}
	return authorizer.DecisionDeny, "a node that joined reads Plinth's objects, and writes its own StorageNode, disks, copies, volumes and snapshots", nil
}

// ownObjects refuses what a node writes that is not its own. It sees the object as it will be stored.
type ownObjects struct{}

var _ admission.ValidationInterface = ownObjects{}

// Handles implements admission.Interface.
func (ownObjects) Handles(admission.Operation) bool { return true }

// Validate implements admission.ValidationInterface.
func (ownObjects) Validate(_ context.Context, a admission.Attributes, _ admission.ObjectInterfaces) error {
	node := nodeOf(a.GetUserInfo())
	if node == "" {
		return nil
	}
	owner := ""
	if o, ok := a.GetObject().(*unstructured.Unstructured); ok {
		owner, _, _ = unstructured.NestedString(o.Object, "spec", "nodeName")
		switch a.GetResource().Resource {
		case "storagenodes":
			owner = o.GetName()
		case "backups": // the controller gives them to a node
			owner, _, _ = unstructured.NestedString(o.Object, "status", "nodeName")
		}
	}
	if owner == node {
		return nil
	}
	return admission.NewForbidden(a, fmt.Errorf("it is of node %q, and the token is node %q's", owner, node))
}
