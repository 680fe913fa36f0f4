package main

import (
	"cmp"
	"context"
	"net"
	"time"

	"github.com/spf13/pflag"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/store"
	"plinth.dev/plinth/backingimage/transfer"
	"plinth.dev/plinth/cmd/internal/program"
)

// access is a command's access to one image at the agents: a token that it makes, renews and takes back.
type access struct {
	client *store.Client
	image  string
	uid    types.UID
	via    string // host:port at which every node is reached; "": where each tells
	clock  clock.PassiveClock

	token transfer.Token
	until time.Time
}

// Times of a token. One that dies with the command that made it opens nothing after a day.
const (
	tokenLife  = 24 * time.Hour
	tokenRenew = time.Hour // before its end
)

// grant makes sure that the token is good for a while.
func (a *access) grant(ctx context.Context) error {
	now := a.clock.Now()
	if a.until.Sub(now) > tokenRenew {
		return nil
	}
	token, until := transfer.NewToken(), now.Add(tokenLife)
	err := a.modify(ctx, func(tokens []v1alpha1.AccessToken) []v1alpha1.AccessToken {
		return transfer.Grant(transfer.Revoke(tokens, a.token), token, until, now)
	})
	if err == nil {
		a.token, a.until = token, until
	}
	return err
}

// endTimeout bounds taking the token back, also after an interrupt.
const endTimeout = 5 * time.Second

// end takes the token back. Where that fails it expires.
func (a *access) end() {
	if a.token == "" {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), endTimeout)
	defer cancel()
	_ = a.modify(ctx, func(tokens []v1alpha1.AccessToken) []v1alpha1.AccessToken { return transfer.Revoke(tokens, a.token) })
}

// modify changes the image's tokens. NotFound when it is another image by now.
func (a *access) modify(ctx context.Context, change func([]v1alpha1.AccessToken) []v1alpha1.AccessToken) error {
	for {
		image, err := images.get(ctx, a.client, a.image)
		if err != nil {
			return err
		}
		if image.UID != a.uid {
			return backingimage.Errorf(backingimage.NotFound, "image %s was deleted meanwhile, and another one has its name", a.image)
		}
		image.Spec.AccessTokens = change(image.Spec.AccessTokens)
		_, err = a.client.Images.Update(ctx, image, metav1.UpdateOptions{})
		if !apierrors.IsConflict(err) {
			return apiError(err, "update", "image", a.image)
		}
	}
}

// dialOrigin makes a client of the agent that makes the image's first copy. NotReady while none does.
func (a *access) dialOrigin(ctx context.Context) (*transfer.Client, error) {
	if err := a.grant(ctx); err != nil {
		return nil, err
	}
	image, err := images.get(ctx, a.client, a.image)
	if err != nil {
		return nil, err
	}
	of, err := copiesOf(ctx, a.client, image)
	if err != nil {
		return nil, err
	}
	for _, c := range of {
		if c.Spec.Origin {
			return a.dial(ctx, c.Spec.NodeName)
		}
	}
	return nil, backingimage.Errorf(backingimage.NotReady, "no disk has been chosen for image %s yet: %s", a.image, image.Status.Message)
}

// dial makes a client of a node's agent.
func (a *access) dial(ctx context.Context, name string) (*transfer.Client, error) {
	node, err := nodes.get(ctx, a.client, name)
	if err != nil {
		return nil, err
	}
	if node.Status.Address == "" || node.Status.PublicKeyHash == "" {
		return nil, backingimage.Errorf(backingimage.NotReady, "node %s has told no address yet", name)
	}
	client := transfer.NewClient(cmp.Or(a.via, node.Status.Address), node.Status.PublicKeyHash, string(a.uid), a.token)
	if a.via == "" {
		client.Local(transfer.LocalDir)
	}
	return client, nil
}

// addVia adds the flag for who cannot reach the nodes where they say that they are. Whoever answers there is known by the node's key.
func addVia(flags *pflag.FlagSet, via *string) {
	flags.StringVar(via, "via", "", "`address` at which the node is reached, host:port, when it is not where it says, as with kubectl port-forward")
}

func checkVia(via string) error {
	if _, _, err := net.SplitHostPort(via); via != "" && err != nil {
		return program.FlagError("via", "%w; write host:port, e.g. 127.0.0.1:9281", err)
	}
	return nil
}
