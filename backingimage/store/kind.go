package store

import (
	"context"
	"errors"
	"fmt"
	"sort"

	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"

	"plinth.dev/plinth/backingimage"
)

// writer is what Kind needs of a typed client whatever its list type.
type writer[T Object] interface {
	Get(ctx context.Context, name string, o metav1.GetOptions) (T, error)
	Create(ctx context.Context, obj T, o metav1.CreateOptions) (T, error)
	Update(ctx context.Context, obj T, o metav1.UpdateOptions) (T, error)
	UpdateStatus(ctx context.Context, obj T, o metav1.UpdateOptions) (T, error)
	Delete(ctx context.Context, name string, o metav1.DeleteOptions) error
	Watch(ctx context.Context, o metav1.ListOptions) (watch.Interface, error)
}

// Kind is one kind of object as a controller sees it: a cache that a watch keeps, and writes that survive conflicts.
// Objects from the cache are shared: copy before changing.
type Kind[T Object] struct {
	name     string
	client   writer[T]
	list     func(context.Context, metav1.ListOptions) (runtime.Object, error)
	selector string // of the objects in the cache
	informer cache.SharedIndexInformer
}

// indexes of a kind's cache, by their names; each function gives the values under which an object is found.
type indexes[T Object] map[string]func(T) []string

func (i indexes[T]) indexers() cache.Indexers {
	all := cache.Indexers{}
	for name, values := range i {
		all[name] = func(o any) ([]string, error) { return values(o.(T)), nil }
	}
	return all
}

// Lists are what a cache is filled from: a client's objects that a field selector finds.
func Lists[T Object, L runtime.Object](client *Resource[T, L], fieldSelector string) PlainLists {
	return PlainLists{&cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			o.FieldSelector = fieldSelector
			return client.List(ctx, o)
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.FieldSelector = fieldSelector
			return client.Watch(ctx, o)
		},
	}}
}

func newKind[T Object, L runtime.Object](name string, client *Resource[T, L], example T, fieldSelector string, by indexes[T]) *Kind[T] {
	list := func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) { return client.List(ctx, o) }
	informer := cache.NewSharedIndexInformerWithOptions(Lists(client, fieldSelector), example, cache.SharedIndexInformerOptions{Indexers: by.indexers()})
	if err := informer.SetTransform(withoutManagedFields); err != nil {
		panic(err) // only one that has started refuses
	}
	return &Kind[T]{name: name, client: client, list: list, selector: fieldSelector, informer: informer}
}

// withoutManagedFields leaves out of the cache who wrote which field: nobody here asks, and it is half of an object. An update from the cache
// loses none of it, because the API server takes what it has when an update brings nothing.
func withoutManagedFields(o any) (any, error) {
	if object, ok := o.(metav1.Object); ok {
		object.SetManagedFields(nil)
	}
	return o, nil
}

// PlainLists fills a cache with a list and not by streaming: a stream's end is only told with the server's next bookmark,
// about a second later, which would be most of the time that a start takes.
type PlainLists struct{ *cache.ListWatch }

// IsWatchListSemanticsUnSupported is how a reflector asks.
func (PlainLists) IsWatchListSemanticsUnSupported() bool { return true }

// Get returns the object from the cache, and whether it is there.
func (k *Kind[T]) Get(name string) (T, bool) {
	obj, ok, err := k.informer.GetStore().GetByKey(name)
	if err != nil || !ok {
		var none T
		return none, false
	}
	return obj.(T), true
}

// List returns all objects in the cache, sorted by name.
func (k *Kind[T]) List() []T {
	return sorted[T](k.informer.GetStore().List())
}

// By returns the objects in the cache that an index has under a value, sorted by name, without looking at the others. The
// index must be one of those that the kind's Store has for it.
func (k *Kind[T]) By(index, value string) []T {
	objs, err := k.informer.GetIndexer().ByIndex(index, value)
	if err != nil {
		panic(fmt.Sprintf("the cache of kind %s has no index %q", k.name, index)) // a fault of the caller's
	}
	return sorted[T](objs)
}

func sorted[T Object](objs []any) []T {
	list := make([]T, len(objs))
	for i, o := range objs {
		list[i] = o.(T)
	}
	sort.Slice(list, func(i, j int) bool { return list[i].GetName() < list[j].GetName() })
	return list
}

// OnChange calls fn with every object that is added, changed or deleted, and once for each that exists when the cache
// fills. fn must not block. The returned function ends the calls.
func (k *Kind[T]) OnChange(fn func(obj T)) (stop func()) {
	call := func(o any) {
		if gone, ok := o.(cache.DeletedFinalStateUnknown); ok {
			o = gone.Obj
		}
		if obj, ok := o.(T); ok {
			fn(obj)
		}
	}
	registration, err := k.informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    call,
		UpdateFunc: func(_, o any) { call(o) },
		DeleteFunc: call,
	})
	if err != nil { // the informer has stopped: nothing will change any more
		return func() {}
	}
	return func() { _ = k.informer.RemoveEventHandler(registration) }
}

// Live returns the object from the API server, for decisions that a stale cache could spoil. NotFound.
func (k *Kind[T]) Live(ctx context.Context, name string) (T, error) {
	obj, err := k.client.Get(ctx, name, metav1.GetOptions{})
	return obj, k.classify("get", name, err)
}

// LiveList returns all objects from the API server, sorted by name: what was written before the call is in it.
func (k *Kind[T]) LiveList(ctx context.Context) ([]T, error) { return k.LiveSelect(ctx, k.selector) }

// LiveSelect is LiveList of the objects that a field selector chooses, those included that are not in the cache.
func (k *Kind[T]) LiveSelect(ctx context.Context, selector string) ([]T, error) {
	list, err := k.list(ctx, metav1.ListOptions{FieldSelector: selector})
	if err != nil {
		return nil, Classify("list", k.name, "", err)
	}
	var all []T
	err = meta.EachListItem(list, func(o runtime.Object) error { all = append(all, o.(T)); return nil })
	sort.Slice(all, func(i, j int) bool { return all[i].GetName() < all[j].GetName() })
	return all, err
}

// Create writes a new object. Conflict when one of that name exists; Invalid when the API server refuses it.
func (k *Kind[T]) Create(ctx context.Context, obj T) (T, error) {
	created, err := k.client.Create(ctx, obj, metav1.CreateOptions{})
	return created, k.classify("create", obj.GetName(), err)
}

// Delete deletes an object; one that does not exist is success.
func (k *Kind[T]) Delete(ctx context.Context, name string) error {
	err := k.client.Delete(ctx, name, metav1.DeleteOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	return k.classify("delete", name, err)
}

// Modify changes an object's metadata or spec. change may be called several times; when it changes nothing, nothing is
// written. NotFound.
func (k *Kind[T]) Modify(ctx context.Context, name string, change func(T)) (T, error) {
	return k.modify(ctx, name, change, k.client.Update, false)
}

// ModifyStatus changes an object's status; see Modify.
func (k *Kind[T]) ModifyStatus(ctx context.Context, name string, change func(T)) (T, error) {
	return k.modify(ctx, name, change, k.client.UpdateStatus, false)
}

// ModifyLiveStatus is ModifyStatus for a caller whose next step relies on it: that nothing has to be written is decided by
// the API server, which refuses a write from a cache that is behind.
func (k *Kind[T]) ModifyLiveStatus(ctx context.Context, name string, change func(T)) (T, error) {
	return k.modify(ctx, name, change, k.client.UpdateStatus, true)
}

// modify begins with the cached object, so that the usual write costs one request, and goes on with the live one
// when that turns out to be stale. always: the cached object is written even if nothing changes.
func (k *Kind[T]) modify(ctx context.Context, name string, change func(T), write update[T], always bool) (T, error) {
	obj, cached := k.Get(name)
	for {
		if !cached {
			var err error
			if obj, err = k.Live(ctx, name); err != nil {
				return obj, err
			}
		}
		changed := obj.DeepCopyObject().(T)
		change(changed)
		if !(cached && always) && apiequality.Semantic.DeepEqual(obj, changed) {
			return obj, nil
		}
		written, err := write(ctx, changed, metav1.UpdateOptions{})
		if err == nil {
			return written, nil
		}
		if !apierrors.IsConflict(err) {
			return obj, Classify("update", k.name, name, err)
		}
		cached = false
	}
}

// update is a client's Update or UpdateStatus.
type update[T Object] func(context.Context, T, metav1.UpdateOptions) (T, error)

// Wait returns when until says that it is done or fails. until sees the object as the cache has it, and none (nil)
// while it does not exist; it is called at once and after every change. ctx's end is ctx's error.
func (k *Kind[T]) Wait(ctx context.Context, name string, until func(obj T) (done bool, err error)) error {
	changed := make(chan struct{}, 1)
	stop := k.OnChange(func(obj T) {
		if obj.GetName() != name {
			return
		}
		select {
		case changed <- struct{}{}:
		default:
		}
	})
	defer stop()
	for {
		obj, _ := k.Get(name)
		if done, err := until(obj); done || err != nil {
			return err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (k *Kind[T]) classify(action, name string, err error) error {
	return Classify(action, k.name, name, err)
}

// Classify gives an API server's error a Kind, with its own message, which names the field. A context's error stays one.
func Classify(action, noun, name string, err error) error {
	if err == nil {
		return nil
	}
	kind := backingimage.Internal
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("%s %s %q: %w", action, noun, name, err)
	case apierrors.IsNotFound(err) && unserved(err):
		return backingimage.Errorf(backingimage.NotReady, "%s %s %q: the API does not serve that kind: it is starting, or the definitions in deploy/crds are not installed", action, noun, name)
	case apierrors.IsNotFound(err):
		return backingimage.Errorf(backingimage.NotFound, "there is no %s %q", noun, name)
	case apierrors.IsAlreadyExists(err):
		kind = backingimage.Conflict
	case apierrors.IsInvalid(err), apierrors.IsBadRequest(err):
		kind = backingimage.Invalid
	case apierrors.IsTimeout(err), apierrors.IsServerTimeout(err), apierrors.IsServiceUnavailable(err), apierrors.IsTooManyRequests(err), apierrors.IsConflict(err):
		kind = backingimage.NotReady
	}
	return backingimage.Errorf(kind, "%s %s %q: %w", action, noun, name, err)
}

// unserved reports whether a 404 is about the path, and not about an object: a server that starts answers before it serves
// every kind.
func unserved(err error) bool {
	return apierrors.HasStatusCause(err, metav1.CauseTypeUnexpectedServerResponse)
}
