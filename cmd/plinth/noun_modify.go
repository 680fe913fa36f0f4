package main

import (
	"context"
	"reflect"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"plinth.dev/plinth/backingimage/store"
)

// modify changes an object's spec; change may be called several times, and when it changes nothing, nothing is written. NotFound.
func (n *noun[T, L]) modify(ctx context.Context, client *store.Client, name string, change func(T)) (T, error) {
	for {
		obj, err := n.resource(client).Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return obj, apiError(err, "get", n.one, name)
		}
		before := obj.DeepCopyObject()
		if change(obj); reflect.DeepEqual(before, any(obj)) {
			return obj, nil
		}
		obj, err = n.resource(client).Update(ctx, obj, metav1.UpdateOptions{})
		if !apierrors.IsConflict(err) {
			return obj, apiError(err, "update", n.one, name)
		}
	}
}
