package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"plinth.dev/plinth/backingimage"
	"plinth.dev/plinth/backingimage/api/v1alpha1"
	"plinth.dev/plinth/backingimage/store"
	"plinth.dev/plinth/cmd/internal/program"
)

// noun is a kind of object as the CLI shows it; ls, show and the completion of names come from it.
type noun[T store.Object, L runtime.Object] struct {
	kind      string // as in the API
	one, many string // as people say
	resource  func(*store.Client) *store.Resource[T, L]
	empty     string // what to do when there are none
	header    []string
	row       func(obj T, now time.Time) []string
	show      func(ctx context.Context, w io.Writer, client *store.Client, obj T, now time.Time) error
}

func (n *noun[T, L]) lsCommand(c *cli) *cobra.Command {
	var o output
	cmd := &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List " + n.many,
		Args:    program.Exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := c.client()
			if err != nil {
				return err
			}
			list, objects, err := n.list(cmd.Context(), client, metav1.ListOptions{})
			if err != nil {
				return err
			}
			var names []string
			for _, obj := range objects {
				names = append(names, obj.GetName())
			}
			return o.print(c.out, list, names, func() error { return n.printList(c, objects) })
		},
	}
	o.addFlag(cmd)
	return cmd
}

func (n *noun[T, L]) printList(c *cli, objects []T) error {
	if len(objects) == 0 {
		_, err := fmt.Fprintf(c.err, "No %s. %s\n", n.many, n.empty)
		return err
	}
	now := c.clock.Now()
	var rows [][]string
	for _, obj := range objects {
		rows = append(rows, n.row(obj, now))
	}
	return printTable(c.out, n.header, rows)
}

func (n *noun[T, L]) showCommand(c *cli) *cobra.Command { return n.showFoundCommand(c, "NAME", n.get) }

// showFoundCommand is showCommand for objects that people call by more than their names.
func (n *noun[T, L]) showFoundCommand(c *cli, argument string, find func(context.Context, *store.Client, string) (T, error)) *cobra.Command {
	var o output
	cmd := &cobra.Command{
		Use:               "show " + argument,
		Aliases:           []string{"get", "describe"},
		Short:             "Show everything about " + n.indefinite(),
		Args:              program.Exactly(argument),
		ValidArgsFunction: n.complete(c),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := c.client()
			if err != nil {
				return err
			}
			obj, err := find(cmd.Context(), client, args[0])
			if err != nil {
				return err
			}
			return o.print(c.out, obj, []string{obj.GetName()}, func() error {
				return n.show(cmd.Context(), c.out, client, obj, c.clock.Now())
			})
		},
	}
	o.addFlag(cmd)
	return cmd
}

// get returns an object by its name. NotFound, Invalid.
func (n *noun[T, L]) get(ctx context.Context, client *store.Client, name string) (T, error) {
	if err := validateName(n.indefinite(), name); err != nil {
		var none T
		return none, err
	}
	obj, err := n.resource(client).Get(ctx, name, metav1.GetOptions{})
	if err = apiError(err, "get", n.one, name); backingimage.Is(err, backingimage.NotFound) {
		command := n.one[strings.LastIndex(n.one, " ")+1:]
		return obj, backingimage.Errorf(backingimage.NotFound, "there is no %s %q (plinth %s ls shows those that are)", n.one, name, command)
	}
	if err != nil {
		return obj, err
	}
	n.stamp(obj)
	return obj, nil
}

// list returns the list as the API has it, and its objects.
func (n *noun[T, L]) list(ctx context.Context, client *store.Client, o metav1.ListOptions) (L, []T, error) {
	list, err := n.resource(client).List(ctx, o)
	if apierrors.IsNotFound(err) {
		return list, nil, backingimage.Errorf(backingimage.NotReady,
			"this API knows no %s: it is starting, or it is another's: use the kubeconfig of plinth standalone, or install the definitions in deploy/crds in the cluster", n.many)
	}
	if err != nil {
		return list, nil, apiError(err, "list", n.many, "all")
	}
	list.GetObjectKind().SetGroupVersionKind(v1alpha1.GroupVersion.WithKind(n.kind + "List"))
	objects := []T{}
	err = meta.EachListItem(list, func(item runtime.Object) error {
		obj := item.(T)
		n.stamp(obj)
		objects = append(objects, obj)
		return nil
	})
	return list, objects, err
}

// waitUntilGone returns when there is the object no more, which its deletion was asked for, or the time is over: NotReady. Meanwhile it shows
// what message says of it.
func (n *noun[T, L]) waitUntilGone(ctx context.Context, c *cli, client *store.Client, obj T, timeout time.Duration, message func(T) string) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	meter := c.newMeter()
	defer meter.end()
	said := ""
	err := poll(ctx, func(ctx context.Context) (bool, error) {
		now, err := n.get(ctx, client, obj.GetName())
		if backingimage.Is(err, backingimage.NotFound) || err == nil && now.GetUID() != obj.GetUID() {
			return true, nil
		}
		if err != nil {
			return false, err
		}
		said = cmp.Or(message(now), said)
		meter.say(strings.TrimSuffix(fmt.Sprintf("%s %s is being deleted: %s", n.one, obj.GetName(), said), ": "))
		return false, nil
	})
	return timedOut(err, timeout, "%s %s is not gone: %s", n.one, obj.GetName(), said)
}

// indefinite is the noun with its article.
func (n *noun[T, L]) indefinite() string {
	if strings.ContainsAny(n.one[:1], "aeiou") {
		return "an " + n.one
	}
	return "a " + n.one
}

// stamp gives an object the kind that typed clients leave out, and drops what only servers read.
func (n *noun[T, L]) stamp(obj T) {
	obj.GetObjectKind().SetGroupVersionKind(v1alpha1.GroupVersion.WithKind(n.kind))
	obj.SetManagedFields(nil)
}

// completionTimeout bounds how long a press of the tab key can take.
const completionTimeout = 2 * time.Second

// complete offers the names of the objects for every argument.
func (n *noun[T, L]) complete(c *cli) cobra.CompletionFunc {
	return func(cmd *cobra.Command, _ []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
		ctx, cancel := context.WithTimeout(cmd.Context(), completionTimeout)
		defer cancel()
		client, err := c.client()
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		_, objects, err := n.list(ctx, client, metav1.ListOptions{})
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		var names []cobra.Completion
		for _, obj := range objects {
			if strings.HasPrefix(obj.GetName(), typed) {
				names = append(names, obj.GetName())
			}
		}
		return names, cobra.ShellCompDirectiveNoFileComp
	}
}
